'use strict';
// What every workload shares: a clock, a log of truths taken inside the process, and a life tied to its parent's.
//
// Times are CLOCK_MONOTONIC nanoseconds, as a Number (exact below 104 days of uptime): the clock that the kernel half
// stamps records with. A log stays in memory, so that taking a sample is no system call, and goes out as one JSON
// line when standard input ends: a workload cannot outlive the test that started it.
const { performance } = require('perf_hooks');

/** CLOCK_MONOTONIC in nanoseconds. */
function now() {
  const [seconds, nanos] = process.hrtime();
  return seconds * 1e9 + nanos;
}

// `performance.now()` counts from a moment that differs from thread to thread: take the distance once a thread.
const origin = now() - performance.now() * 1e6;

/** A `performance.now()` time as CLOCK_MONOTONIC nanoseconds. */
const fromPerformance = (ms) => Math.round(origin + ms * 1e6);

/** Spins for so many milliseconds. */
function busy(ms) {
  const end = now() + ms * 1e6;
  while (now() < end);
}

/** Cumulative event-loop time of this thread: [time, idle ns, active ns]. Exact inside a callback: idle time only moves in poll. */
function loopTime() {
  const { idle, active } = performance.eventLoopUtilization();
  return [now(), Math.round(idle * 1e6), Math.round(active * 1e6)];
}

/** Logs `loopTime` at most every `everyMs`; call the returned function from callbacks. */
function loopTimeLog(everyMs = 5) {
  const log = [];
  let next = 0;
  const sample = () => {
    const at = now();
    if (at < next) return;
    next = at + everyMs * 1e6;
    log.push(loopTime());
  };
  sample.log = log;
  return sample;
}

/**
 * Says READY, calls `start` when a line arrives on standard input, and when that ends prints what `truths()` (or its
 * promise) returns as one JSON line and exits.
 */
function serve(truths, start = () => {}) {
  process.stdin.once('data', start);
  process.stdin.on('end', async () => {
    const line = JSON.stringify(await truths());
    process.stdout.write(line + '\n', () => process.exit(0));
  });
  process.stdout.write('READY\n');
}

/** The time until which a started workload is to be active: it idles afterwards, so that a trace of it has clean edges. */
const deadline = (seconds) => now() + seconds * 1e9;

module.exports = { busy, deadline, fromPerformance, loopTime, loopTimeLog, now, serve };
