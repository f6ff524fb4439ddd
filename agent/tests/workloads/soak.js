'use strict';
// Lives for a moment: a little work each 40 ms on the loop, on the thread pool and, where it is asked for, in a worker; in functions of
// a script that no other process has. Ends when standard input is closed.
const fs = require('fs');
const vm = require('vm');
const { isMainThread, Worker } = require('worker_threads');

const name = `work_of_${process.pid}_${isMainThread ? 'main' : 'worker'}`;
const work = vm.runInThisContext(`(function ${name}(until) { while (Date.now() < until); })`, `/srv/${name}.js`);

setInterval(() => {
  work(Date.now() + 2);
  fs.stat('/', () => {});
}, 40);

if (isMainThread) {
  if (process.argv[2] === 'worker') new Worker(__filename);
  process.stdin.on('end', () => process.exit(0)).resume();
  process.stdout.write('READY\n');
}
