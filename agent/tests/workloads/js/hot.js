'use strict';
// Keeps a CPU busy in functions of many kinds, in every tier of V8's, none of which waits or leaves JavaScript.
//
// Truth: the self times of functions by V8's own profiler, which runs meanwhile: [function, script, first line, microseconds].
const { Session } = require('inspector');
const { deadline, now, serve } = require('../truth.js');

const ACTIVE_SECONDS = Number(process.argv[2] ?? 4);
const numbers = Float64Array.from({ length: 512 }, (_, i) => i + 0.5);
const objects = Array.from({ length: 256 }, (_, i) => (i % 2 ? { a: i, b: 1 } : { b: 2, a: i }));
let sink = 0;

function floats(times) {
  let sum = 0;
  for (let k = 0; k < times; k++) for (let i = 0; i < numbers.length; i++) sum += numbers[i] * 1.0001;
  return sum;
}

function shapes(times) {
  let sum = 0;
  for (let k = 0; k < times; k++) for (const object of objects) sum += object.a ^ object.b;
  return sum;
}

const fibonacci = (n) => (n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2));

const add = (a, b) => a + b;
const twice = (a) => add(a, a);
function inlines(times) {
  let sum = 0;
  for (let i = 0; i < times; i++) sum = (twice(sum) + add(i, 1)) % 1_000_003;
  return sum;
}

function* counts(n) { for (let i = 0; i < n; i++) yield i; }
function generates(n) {
  let sum = 0;
  for (const i of counts(n)) sum += i;
  return sum;
}

class Vector {
  constructor(x, y) { this.x = x; this.y = y; }
  get length2() { return this.x * this.x + this.y * this.y; }
  turn(n) { for (let i = 0; i < n; i++) { const { x } = this; this.x = this.y * 0.99; this.y = x * 1.01; } return this.length2; }
}
const vector = new Vector(1, 2);

function mixed(n) {
  let sum = 0;
  for (let i = 0; i < n; i++) {
    switch (i % 5) {
      case 0: sum += i; break;
      case 1: sum ^= i; break;
      case 2: sum -= i >> 1; break;
      case 3: sum = (sum * 3) | 0; break;
      default: sum = ~sum;
    }
  }
  return sum;
}

/** Each made anew, so that it stays in the interpreter; too short for the loop to be compiled. */
const coldText = 'let sum = 0; for (let i = 0; i < 60; i++) sum += i ^ n; return sum;';
const COLD = 40;
function makeCold() {
  return Array.from({ length: COLD }, (_, i) => new Function('n', `${coldText} // ${i} ${sink}`));
}
const COLD_AGE = 8;
let colds = makeCold();
let age = 0;
function runsCold(times) {
  let sum = 0;
  if (++age % COLD_AGE === 0) colds = makeCold();
  for (let k = 0; k < times; k++) for (const cold of colds) sum += cold(k);
  return sum;
}

function walk(tree) { return tree === null ? 0 : 1 + walk(tree.left) + walk(tree.right); }
function walks(times) {
  let sum = 0;
  for (let i = 0; i < times; i++) sum += walk(tree);
  return sum;
}
const grow = (depth) => (depth === 0 ? null : { left: grow(depth - 1), right: grow(depth - 1) });
const tree = grow(10);

function text(n) {
  let hash = 0;
  for (let i = 0; i < n; i++) hash = (hash * 31 + coldText.charCodeAt(i % 60)) | 0;
  return hash;
}

/** Called by index, so that none is inlined into its caller: of code that was compiled before it began, V8's profiler cannot tell. */
const jobs = [
  [floats, 500], [shapes, 300], [fibonacci, 23], [inlines, 40_000], [generates, 15_000], [vector.turn, 60_000],
  [mixed, 50_000], [runsCold, 12], [text, 60_000], [walks, 40],
];

function turn() {
  for (const [job, times] of jobs) sink += job.call(vector, times);
  sink %= 1e9;
}

const session = new Session();
session.connect();
const post = (method, parameters) => new Promise((resolve, reject) => {
  session.post(method, parameters, (error, result) => (error ? reject(error) : resolve(result)));
});

function selfTimes(profile) {
  const nodes = new Map(profile.nodes.map((node) => [node.id, node.callFrame]));
  const times = new Map();
  profile.samples.forEach((id, i) => {
    const { functionName, url, lineNumber } = nodes.get(id);
    const key = JSON.stringify([functionName, url, lineNumber + 1]);
    // A sample stands for the time that follows it.
    times.set(key, (times.get(key) ?? 0) + (profile.timeDeltas[i + 1] ?? 0));
  });
  return [...times].map(([key, us]) => [...JSON.parse(key), us]);
}

let done;
const finished = new Promise((resolve) => { done = resolve; });
serve(() => finished, async () => {
  await post('Profiler.enable');
  await post('Profiler.setSamplingInterval', { interval: 1_000 });
  await post('Profiler.start');
  const begin = now();
  const end = deadline(ACTIVE_SECONDS);
  await new Promise((resolve) => {
    (function again() {
      turn();
      if (now() < end) setImmediate(again);
      else resolve();
    })();
  });
  const span = [begin, now()];
  const { profile } = await post('Profiler.stop');
  process.stdout.write('DONE\n');
  done({ span, self: selfTimes(profile) });
});
