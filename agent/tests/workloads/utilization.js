'use strict';
// Event loops with a known share of active time, on the main thread and on a worker.
//
//   node utilization.js idle|half|saturated
//
// Truth: `eventLoopUtilization()` of both threads, cumulative, every few milliseconds.
const { isMainThread, parentPort, Worker, workerData } = require('worker_threads');
const { busy, loopTimeLog, serve } = require('./truth.js');

const mode = isMainThread ? process.argv[2] : workerData;
const sample = loopTimeLog();

const loads = {
  idle: () => setInterval(sample, 20),
  half: () => setInterval(() => { sample(); busy(8); }, 16),
  saturated: () => { const turn = () => { sample(); busy(3); setImmediate(turn); }; turn(); },
};
loads[mode]();

if (isMainThread) {
  const worker = new Worker(__filename, { workerData: mode });
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
