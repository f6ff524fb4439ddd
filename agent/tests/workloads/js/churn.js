'use strict';
// Functions that are made and dropped all the time, in a heap that is compacted all the time, so that code and all that
// describes it moves, dies and gives its place to others. What they are is in their names: `f_S_L` begins in line L of script
// `gen-S.js`, calls the next one of its script on line L + 1, and the last one calls `work` there.
//
//   node churn.js SECONDS
//
// Truth: when each script lived, and which lines belong to the functions of this file.
const fs = require('fs');
const v8 = require('v8');
const vm = require('vm');
const { deadline, now, serve } = require('../truth.js');

for (const flag of ['--expose-gc', '--compact-on-every-full-gc']) v8.setFlagsFromString(flag);
const collect = vm.runInNewContext('gc');

const ACTIVE_SECONDS = Number(process.argv[2]);
const ALIVE = 24;
/** Between forced collections: each takes some milliseconds. */
const COLLECT_MS = 60;

/** Where a script's functions begin: no two neighbours have the same lines. */
const first = (script) => 2 + (script % 7);
const step = (script) => 3 + (script % 5);
const depth = (script) => 3 + (script % 6);

function source(script) {
  const lines = [];
  for (let i = 0; i < depth(script); i++) {
    const at = first(script) + i * step(script);
    const last = i === depth(script) - 1;
    lines[at - 1] = `function f_${script}_${at}(n, work) {`;
    lines[at] = `  return ${last ? 'work' : `f_${script}_${at + step(script)}`}(n + 1, work) + ${script};`;
    lines[at + 1] = '}';
  }
  return `${Array.from(lines, (line) => line ?? '').join('\n')}\nf_${script}_${first(script)}`;
}

let kept = [];
function work(n) {
  let sum = 0;
  for (let i = 0; i < 60; i++) {
    const object = { n, i, text: `item ${i}` };
    if (i === 0) kept.push(object);
    sum += object.i ^ n;
  }
  return sum;
}

function runs(entry, times) {
  let sum = 0;
  for (let i = 0; i < times; i++) {
    sum += entry.run(i, work);
  }
  return sum;
}

const lives = [];
let scripts = 0;
const alive = [];

function replaceOne() {
  const script = scripts++;
  if (alive.length === ALIVE) {
    const [dropped] = alive.splice(script % ALIVE, 1);
    lives.push([dropped.script, dropped.born, now()]);
  }
  alive.push({ script, born: now(), run: vm.runInThisContext(source(script), { filename: `gen-${script}.js` }) });
}

function turn() {
  replaceOne();
  // Some are called often enough for every compiler.
  for (const entry of alive) runs(entry, entry.script % 4 === 0 ? 60 : 3);
  if (kept.length > 200_000) kept = [];
}

/** The first and the last line of a function of this file. */
function linesOf(named) {
  const [text, lines] = [fs.readFileSync(__filename, 'utf8'), (of) => of.split('\n').length];
  const begin = lines(text.slice(0, text.indexOf(String(named))));
  return [begin, begin + lines(String(named)) - 1];
}

let done;
const finished = new Promise((resolve) => { done = resolve; });
serve(() => finished, () => {
  const end = deadline(ACTIVE_SECONDS);
  const collecting = setInterval(collect, COLLECT_MS);
  (function again() {
    turn();
    if (now() < end) return setImmediate(again);
    clearInterval(collecting);
    for (const { script, born } of alive) lives.push([script, born, now()]);
    process.stdout.write('DONE\n');
    return done({ lives, functions: { work: linesOf(work), runs: linesOf(runs) } });
  })();
});
