'use strict';
// Two threads that hand a word to each other as often as they can, and sleep in between: nothing but switches.
//
// Truth: how often, and CPU time of the process, by time.
const { Worker, isMainThread, workerData } = require('worker_threads');
const { now, serve } = require('./truth.js');

if (isMainThread) {
  const word = new Int32Array(new SharedArrayBuffer(8));
  const look = () => [now(), Atomics.load(word, 1), process.cpuUsage()];
  const log = [];
  const workers = [0, 1].map((mine) => new Worker(__filename, { workerData: { word, mine } }));
  let ready = 0;
  for (const worker of workers) {
    worker.once('online', () => {
      if (++ready < workers.length) return;
      serve(() => ({ log }), () => setInterval(() => log.push(look()), 100));
    });
  }
} else {
  const { word, mine } = workerData;
  for (;;) {
    Atomics.wait(word, 0, 1 - mine);
    Atomics.add(word, 1, 1);
    Atomics.store(word, 0, 1 - mine);
    Atomics.notify(word, 0);
  }
}
