'use strict';
// Garbage collection of every kind: scavenges from short-lived objects, mark-compacts from a heap that grows and is
// dropped (with incremental steps before them), and forced ones.
//
// Truth: every `gc` entry of a PerformanceObserver as [start, end, kind, flags]; kinds as in
// `perf_hooks.constants` (1 minor, 4 major, 8 incremental, 16 weak callbacks).
const { PerformanceObserver } = require('perf_hooks');
const v8 = require('v8');
const vm = require('vm');
const { fromPerformance, serve } = require('./truth.js');

v8.setFlagsFromString('--expose-gc');
const forceGc = vm.runInNewContext('gc');

const log = [];
const record = (list) => {
  for (const { startTime, duration, detail } of list.getEntries()) {
    log.push([fromPerformance(startTime), fromPerformance(startTime + duration), detail.kind, detail.flags]);
  }
};
const observer = new PerformanceObserver(record);
observer.observe({ entryTypes: ['gc'] });

const ACTIVE_SECONDS = 2;
const RETAINED_MAX = 600_000;
let retained = [];

function allocate() {
  for (let i = 0; i < 6_000; i++) {
    const object = { i, text: `item ${i}`, next: [i, i + 1] };
    if (i % 2 === 0) retained.push(object);
  }
  if (retained.length > RETAINED_MAX) retained = [];
}

function start() {
  const timers = [setInterval(allocate, 4), setInterval(forceGc, 600)];
  setTimeout(() => timers.forEach(clearInterval), ACTIVE_SECONDS * 1e3);
}

serve(() => new Promise((resolve) => {
  // Entries reach the observer in a later turn.
  setTimeout(() => resolve({ gc: log }), 50);
}), start);
