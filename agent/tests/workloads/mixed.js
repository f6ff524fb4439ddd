'use strict';
// A bit of everything, for as long as it lives: timers and immediates with busy work, synchronous and asynchronous file
// reads, pool work for more threads than there are CPUs, allocation, and a worker that does the same.
//
// Truth: `eventLoopUtilization()` of both threads, cumulative, every few milliseconds.
const crypto = require('crypto');
const fs = require('fs');
const { isMainThread, parentPort, Worker } = require('worker_threads');
const { busy, loopTimeLog, serve } = require('./truth.js');

/** How many times as slow this machine is as others are: as much less often is it given what takes its CPU. */
const SLOWNESS = Number(process.env.AGENT_TEST_PATIENCE ?? 1);

const sample = loopTimeLog();
let kept = [];

setInterval(() => { sample(); busy(2); setImmediate(() => busy(0.5)); }, 10);
setInterval(() => { fs.readFileSync(__filename); fs.stat(__filename, () => {}); }, 7 * SLOWNESS);
setInterval(() => {
  for (let i = 0; i < 4_000; i++) kept.push({ i });
  if (kept.length > 200_000) kept = [];
}, 15 * SLOWNESS);
setInterval(() => {
  for (let i = 0; i < 3; i++) crypto.pbkdf2('password', 'salt', 3_000 / SLOWNESS, 32, 'sha256', () => {});
}, 40 * SLOWNESS);

if (isMainThread) {
  const worker = new Worker(__filename);
  worker.once('message', () => {
    serve(async () => {
      const log = new Promise((resolve) => worker.once('message', resolve));
      worker.postMessage('stop');
      return { main: sample.log, worker: await log };
    });
  });
} else {
  parentPort.once('message', () => parentPort.postMessage(sample.log));
  parentPort.postMessage('running');
}
