'use strict';
// Every scenario, on the main thread and on a worker: called for the first time, then again and again until V8 has compiled
// it as well as it can.
const { isMainThread, parentPort, Worker } = require('worker_threads');
const { quietly, truths } = require('./spot.js');

const LOUD_ROUNDS = 3;
/** Enough for each of V8's compilers. */
const WARM_UP_CALLS = 4_000;
/** Some scenarios are dear. */
const WARM_UP_MS = 25;
const WARM_UP_AWAITS_MS = 400;

const synchronous = { ...require('./calls.js'), ...require('./wide.js') };
const asynchronous = require('./waits.js');

function callEach() {
  for (const scenario of Object.values(synchronous)) scenario();
}

function warmUp() {
  for (const scenario of Object.values(synchronous)) {
    const end = Date.now() + WARM_UP_MS;
    for (let i = 0; i < WARM_UP_CALLS && Date.now() < end; i++) scenario();
  }
}

async function awaitEach(scenarios) {
  for (const scenario of Object.values(scenarios)) await scenario();
}

async function warmUpAwaits(scenarios) {
  const end = Date.now() + WARM_UP_AWAITS_MS;
  while (Date.now() < end) await awaitEach(scenarios);
}

async function main() {
  const { scenarios } = await import('./module.mjs');
  const all = { ...asynchronous, ...scenarios };
  for (let i = 0; i < LOUD_ROUNDS; i++) {
    callEach();
    await awaitEach(all);
  }
  await quietly(async () => {
    warmUp();
    await warmUpAwaits(all);
  });
  for (let i = 0; i < LOUD_ROUNDS; i++) {
    callEach();
    await awaitEach(all);
  }
}

async function onWorker() {
  const worker = new Worker(__filename);
  return new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
}

if (isMainThread) {
  const { serve } = require('../truth.js');
  let done;
  const finished = new Promise((resolve) => { done = resolve; });
  serve(() => finished, async () => {
    const worker = onWorker();
    await main();
    const spots = [...truths(), ...await worker];
    // Said at once, for the trace to end here.
    process.stdout.write('DONE\n');
    done({ spots });
  });
} else {
  main().then(() => parentPort.postMessage(truths()));
}
