'use strict';
// Blocks the main thread in the ways that a server should not, each on a line of its own.
//
//   node blocks.js DIRECTORY
//
// DIRECTORY is for its pipes.
//
// Truth: by way, the function and line that blocked, the nanoseconds that it took in all, and for how many of these the thread, or
// others before it, had a CPU.
const { execSync, spawn } = require('child_process');
const fs = require('fs');
const path = require('path');
const { isMainThread, Worker, workerData } = require('worker_threads');
const { now, serve } = require('../truth.js');

const ROUNDS = 12;
const EACH_MS = 20;
const [FREE, LOCKED] = [0, 1];

/** The line on which this is called. */
const here = () => Number(/:(\d+):\d+\)?$/.exec(new Error().stack.split('\n')[2])[1]);

/** Nanoseconds for which this thread has had a CPU, by the kernel's last look, or has waited for one. */
function ran() {
  const [had, waited] = fs.readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ').map(Number);
  return had + waited;
}

const spots = {};
function timed(spot, line, run) {
  const before = ran();
  const begin = now();
  run();
  const ns = now() - begin;
  const entry = spots[spot] ?? (spots[spot] = { line, ns: 0, ran: 0 });
  entry.ns += ns;
  entry.ran += Math.min(ran() - before, ns);
}

function readsSlowly({ ask, answer }) {
  fs.writeSync(ask, '\n');
  timed('readsSlowly', here(), () => fs.readSync(answer, Buffer.alloc(1)));
}

/** Answers a byte after a while. */
function slowPipe(directory) {
  execSync('mkfifo ask answer', { cwd: directory });
  // Read and written, so that opening them waits for nobody.
  const [ask, answer] = ['ask', 'answer'].map((name) => fs.openSync(path.join(directory, name), 'r+'));
  const loop = `while read -r line; do sleep ${EACH_MS / 1e3}; echo; done`;
  return { ask, answer, process: spawn('sh', ['-c', loop], { stdio: [ask, answer, 'ignore'] }) };
}

function waitsForCell(cell) {
  timed('waitsForCell', here(), () => Atomics.wait(cell, 0, 0, EACH_MS));
}

function runsAnother() {
  timed('runsAnother', here(), () => execSync(`sleep ${EACH_MS / 1e3}`));
}

/** A mutex as libraries make them. */
class Lock {
  constructor(cell) { this.cell = cell; }
  acquire() {
    while (Atomics.compareExchange(this.cell, 0, FREE, LOCKED) !== FREE) {
      timed('takesLock', here(), () => Atomics.wait(this.cell, 0, LOCKED));
    }
  }
  release() {
    Atomics.store(this.cell, 0, FREE);
    Atomics.notify(this.cell, 0);
  }
}

function takesLock(lock, turn) {
  Atomics.store(turn, 0, 1);
  Atomics.notify(turn, 0);
  Atomics.wait(turn, 0, 1);
  lock.acquire();
  lock.release();
}

const shared = () => new Int32Array(new SharedArrayBuffer(4));

if (isMainThread) {
  const [mutex, turn, cell] = [shared(), shared(), shared()];
  new Worker(__filename, { workerData: { mutex, turn } }).unref();
  const pipe = slowPipe(process.argv[2]);
  let done;
  const finished = new Promise((resolve) => { done = resolve; });
  serve(() => finished, () => {
    for (let i = 0; i < ROUNDS; i++) {
      readsSlowly(pipe);
      waitsForCell(cell);
      runsAnother();
      takesLock(new Lock(mutex), turn);
    }
    pipe.process.kill();
    process.stdout.write('DONE\n');
    done({ spots });
  });
} else {
  const { mutex, turn } = workerData;
  const lock = new Lock(mutex);
  const aside = shared();
  for (;;) {
    Atomics.wait(turn, 0, 0);
    lock.acquire();
    // Now it may try.
    Atomics.store(turn, 0, 0);
    Atomics.notify(turn, 0);
    Atomics.wait(aside, 0, 0, EACH_MS);
    lock.release();
  }
}
