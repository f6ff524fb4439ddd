'use strict';
// What the applications share: where their packages are, their life, and their truth.
//
// Truth: by script, the functions that V8 has run, from its own coverage, which it takes without having been asked to before:
// [name, first line, last line]. It is taken when all is over.
const { createRequire } = require('module');
const { Session } = require('inspector');
const { serve } = require('../truth.js');

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

async function functions() {
  const session = new Session();
  session.connect();
  const post = (method, parameters) => new Promise((resolve, reject) => {
    session.post(method, parameters, (error, result) => (error ? reject(error) : resolve(result)));
  });
  await post('Profiler.enable');
  const { result } = await post('Profiler.getBestEffortCoverage');
  await post('Debugger.enable');
  const scripts = {};
  for (const { scriptId, url, functions: all } of result) {
    if (url === '') continue;
    const { scriptSource } = await post('Debugger.getScriptSource', { scriptId });
    const starts = lineStarts(scriptSource);
    const lines = ({ startOffset, endOffset }) => [lineOf(starts, startOffset), lineOf(starts, endOffset)];
    (scripts[url.replace('file://', '')] ??= []).push(
      ...all.map(({ functionName, ranges: [range] }) => [functionName, ...lines(range)]));
  }
  return { scripts };
}

/** Says where it listens, and lives as long as who started it wants. */
function listening(port) {
  serve(functions);
  process.stdout.write(`PORT ${port}\n`);
}

module.exports = { listening, packages };
