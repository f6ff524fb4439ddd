'use strict';
// Many worker threads, each with a loop that wakes a few times a second.
//
//   node workers.js COUNT
const { isMainThread, parentPort, Worker } = require('worker_threads');

if (isMainThread) {
  const count = Number(process.argv[2]);
  // Large heaps and stacks times hundreds would not fit everywhere.
  const resourceLimits = { maxOldGenerationSizeMb: 16, maxYoungGenerationSizeMb: 2, stackSizeMb: 1 };
  let running = 0;
  for (let i = 0; i < count; i++) {
    new Worker(__filename, { resourceLimits }).once('message', () => {
      if (++running === count) process.stdout.write('READY\n');
    });
  }
  process.stdin.on('end', () => process.exit(0));
  process.stdin.resume();
} else {
  setInterval(() => {}, 300);
  parentPort.postMessage('running');
}
