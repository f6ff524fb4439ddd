'use strict';
// Where the scenarios of JavaScript stacks block, and the truth of what was on the stack there.
//
// The truth is V8's own: the call sites of an `Error` that is made on the very line on which the thread then waits, so that
// all frames, the innermost too, have the same function, script and line in both. Frames are innermost first:
//
//   [function | null, method | null, script | null, line | null, kind]
//
// `method` is the property of the receiver that holds the function, which names one that has no name. `kind` is js, eval (no
// script), builtin (no line) or async (not on the stack: awaits those above).
Error.stackTraceLimit = Infinity;

const cell = new Int32Array(new SharedArrayBuffer(4));
const WAIT_MS = 2;

/** By spot and frames: how often the thread waited there. */
const seen = new Map();
let quiet = false;

function stop(spot) {
  if (quiet) return spot;
  note(spot, new Error(), Atomics.wait(cell, 0, 0, WAIT_MS)); // all in one line: see above
  return spot;
}

function kindOf(site) {
  if (site.isAsync()) return 'async';
  if (site.getLineNumber() === null) return 'builtin';
  return site.isEval() ? 'eval' : 'js';
}

function frameOf(site) {
  const kind = kindOf(site);
  const method = kind === 'js' ? site.getMethodName() : null;
  // What V8 calls code that has no name itself.
  const name = kind === 'eval' && site.getFunctionName() === 'eval' ? null : site.getFunctionName();
  return [name, method, site.getFileName() ?? null, site.getLineNumber(), kind];
}

function note(spot, error) {
  const before = Error.prepareStackTrace;
  Error.prepareStackTrace = (_, sites) => sites.map(frameOf);
  const frames = error.stack;
  Error.prepareStackTrace = before;
  const key = JSON.stringify([spot, frames]);
  const entry = seen.get(key);
  if (entry === undefined) seen.set(key, { spot, frames, times: 1 });
  else entry.times++;
}

/** Runs without stopping, for V8 to compile what is hot. */
async function quietly(run) {
  quiet = true;
  await run();
  quiet = false;
}

module.exports = { stop, quietly, truths: () => [...seen.values()] };
