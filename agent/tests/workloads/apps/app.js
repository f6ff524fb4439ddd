'use strict';
// What the applications share: where their packages are, their life, and their truth.
//
// Truth: by script, the functions that V8 has run, from its own coverage, which it takes without having been asked to before:
// [name, first line, last line]. It is taken a few times under load and when all is over.
const { createRequire } = require('module');
const { Session } = require('inspector');
const { serve } = require('../truth.js');

/** When V8 is asked under load, from when the server listens. */
const LOOKS_MS = [800, 3000];

/** `require` of a package of those in a directory. */
const packages = (directory) => createRequire(`${directory}/`);

/** Where lines begin. */
function lineStarts(source) {
  const starts = [0];
  for (let at = source.indexOf('\n'); at >= 0; at = source.indexOf('\n', at + 1)) starts.push(at + 1);
  return starts;
}

/** The line, from 1, of an offset. */
function lineOf(starts, offset) {
  let [low, high] = [0, starts.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (starts[middle] <= offset) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** An inspector of this very process. */
const session = new Session();
const post = (method, parameters) => new Promise((resolve, reject) => {
  session.post(method, parameters, (error, result) => (error ? reject(error) : resolve(result)));
});

/** By script: its name, and its functions by where they are. What was seen once stays, as V8 forgets closures that are gone. */
const seen = new Map();

async function look() {
  const { result } = await post('Profiler.getBestEffortCoverage');
  for (const { scriptId, url, functions } of result) {
    if (url === '') continue;
    if (!seen.has(scriptId)) seen.set(scriptId, { url, functions: new Map() });
    const known = seen.get(scriptId).functions;
    for (const { functionName, ranges: [{ startOffset, endOffset }] } of functions) {
      known.set(`${startOffset} ${endOffset}`, { functionName, startOffset, endOffset });
    }
  }
}

async function functions() {
  await look();
  // Not before: it is under a debugger that code is no longer what it was.
  await post('Debugger.enable');
  const scripts = {};
  for (const [scriptId, { url, functions: all }] of seen) {
    // A script that has been collected has no source any more, and nothing to say.
    const { scriptSource } = await post('Debugger.getScriptSource', { scriptId }).catch(() => ({}));
    if (scriptSource === undefined) continue;
    const starts = lineStarts(scriptSource);
    (scripts[url.replace('file://', '')] ??= []).push(...[...all.values()].map(({ functionName, startOffset, endOffset }) => (
      [functionName, lineOf(starts, startOffset), lineOf(starts, endOffset)])));
  }
  return { scripts };
}

/** Says where it listens, and lives as long as who started it wants. */
function listening(port) {
  serve(functions);
  session.connect();
  post('Profiler.enable').then(() => LOOKS_MS.forEach((after) => setTimeout(look, after).unref()));
  process.stdout.write(`PORT ${port}\n`);
}

module.exports = { listening, packages };
