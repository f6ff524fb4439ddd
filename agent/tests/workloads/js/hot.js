'use strict';
// Keeps a CPU busy in functions of many kinds, in every tier of V8's, none of which waits or leaves JavaScript.
//
// Truths: nanoseconds of each job by the clock, without those in which it waited for a CPU, by the kernel's books, and those of
// garbage collections, in which it may wait for other threads; and samples of functions by V8's own
// profiler, which runs meanwhile: [function, script, first line, samples]. Samples, not times: a thread that waits for a CPU is not
// sampled, and that time is not its function's.
//
//   node hot.js [CPU SECONDS]
const fs = require('fs');
const { Session } = require('inspector');
const { PerformanceObserver } = require('perf_hooks');
const { fromPerformance, now, serve } = require('../truth.js');

const ACTIVE_US = Number(process.argv[2] ?? 3) * 1e6;
const numbers = Float64Array.from({ length: 512 }, (_, i) => i + 0.5);
const objects = Array.from({ length: 256 }, (_, i) => (i % 2 ? { a: i, b: 1 } : { b: 2, a: i }));
let sink = 0;

function floats(times) {
  let sum = 0;
  for (let k = 0; k < times; k++) for (let i = 0; i < numbers.length; i++) sum += numbers[i] * 1.0001;
  return sum;
}

function shapes(times) {
  let sum = 0;
  for (let k = 0; k < times; k++) for (const object of objects) sum += object.a ^ object.b;
  return sum;
}

const fibonacci = (n) => (n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2));

const add = (a, b) => a + b;
const twice = (a) => add(a, a);
function inlines(times) {
  let sum = 0;
  for (let i = 0; i < times; i++) sum = (twice(sum) + add(i, 1)) % 1_000_003;
  return sum;
}

function* counts(n) { for (let i = 0; i < n; i++) yield i; }
function generates(n) {
  let sum = 0;
  for (const i of counts(n)) sum += i;
  return sum;
}

class Vector {
  constructor(x, y) { this.x = x; this.y = y; }
  get length2() { return this.x * this.x + this.y * this.y; }
  turn(n) { for (let i = 0; i < n; i++) { const { x } = this; this.x = this.y * 0.99; this.y = x * 1.01; } return this.length2; }
}
const vector = new Vector(1, 2);

function mixed(n) {
  let sum = 0;
  for (let i = 0; i < n; i++) {
    switch (i % 5) {
      case 0: sum += i; break;
      case 1: sum ^= i; break;
      case 2: sum -= i >> 1; break;
      case 3: sum = (sum * 3) | 0; break;
      default: sum = ~sum;
    }
  }
  return sum;
}

const words = 'the quick brown fox jumps over the lazy dog and runs away from it';

function walk(tree) { return tree === null ? 0 : 1 + walk(tree.left) + walk(tree.right); }
function walks(times) {
  let sum = 0;
  for (let i = 0; i < times; i++) sum += walk(tree);
  return sum;
}
const grow = (depth) => (depth === 0 ? null : { left: grow(depth - 1), right: grow(depth - 1) });
const tree = grow(10);

function text(n) {
  let hash = 0;
  for (let i = 0; i < n; i++) hash = (hash * 31 + words.charCodeAt(i % 60)) | 0;
  return hash;
}

/** Called by way of V8, so that none is inlined into its caller: V8's profiler does not always know what was. */
const jobs = [
  [floats, 500], [shapes, 300], [fibonacci, 23], [inlines, 40_000], [generates, 15_000], [vector.turn, 60_000],
  [mixed, 50_000], [text, 60_000], [walks, 40],
];

const schedstat = fs.openSync('/proc/thread-self/schedstat');
const statBytes = Buffer.alloc(64);
/** Nanoseconds that this thread has waited for a CPU. */
const waited = () => Number(statBytes.latin1Slice(0, fs.readSync(schedstat, statBytes, 0, 64, 0)).split(' ')[1]);

/** When a job ended, and how long the thread had waited until then; and what is between rounds. */
const ends = [];
const BETWEEN = '';

function round() {
  // In a new order each time: a round that takes as long as some samples are apart would have them at the same places.
  for (let i = jobs.length - 1; i > 0; i--) {
    const other = Math.floor(Math.random() * (i + 1));
    [jobs[i], jobs[other]] = [jobs[other], jobs[i]];
  }
  ends.push([BETWEEN, now(), waited()]);
  for (const [job, times] of jobs) {
    sink += Reflect.apply(job, vector, [times]);
    ends.push([job.name, now(), waited()]);
  }
  sink %= 1e9;
}

const session = new Session();
session.connect();
const post = (method, parameters) => new Promise((resolve, reject) => {
  session.post(method, parameters, (error, result) => (error ? reject(error) : resolve(result)));
});

function selfTimes(profile) {
  const nodes = new Map(profile.nodes.map((node) => [node.id, node.callFrame]));
  const times = new Map();
  for (const id of profile.samples) {
    const { functionName, url, lineNumber } = nodes.get(id);
    const key = JSON.stringify([functionName, url, lineNumber + 1]);
    times.set(key, (times.get(key) ?? 0) + 1);
  }
  return [...times].map(([key, samples]) => [...JSON.parse(key), samples]);
}

const collections = [];
const observer = new PerformanceObserver((list) => collections.push(...list.getEntries()));

/** Nanoseconds by job. */
function spent(begin) {
  const times = Object.fromEntries([[BETWEEN, 0], ...jobs.map(([job]) => [job.name, 0])]);
  let [at, before] = [0, 0];
  for (const [name, end, wait] of ends) {
    times[name] += end - begin - (wait - before);
    before = wait;
    for (; at < collections.length && fromPerformance(collections[at].startTime) < end; at++) {
      if (fromPerformance(collections[at].startTime) >= begin) times[name] -= collections[at].duration * 1e6;
    }
    begin = end;
  }
  delete times[BETWEEN];
  return times;
}

let done;
const finished = new Promise((resolve) => { done = resolve; });
serve(() => finished, async () => {
  await post('Profiler.enable');
  await post('Profiler.setSamplingInterval', { interval: 1_000 });
  await post('Profiler.start');
  observer.observe({ entryTypes: ['gc'] });
  const begin = now();
  const used = process.cpuUsage();
  await new Promise((resolve) => {
    (function again() {
      round();
      if (process.cpuUsage(used).user < ACTIVE_US) setImmediate(again);
      else resolve();
    })();
  });
  const span = [begin, now()];
  const { profile } = await post('Profiler.stop');
  process.stdout.write('DONE\n');
  done({ span, spent: spent(begin), self: selfTimes(profile) });
});
