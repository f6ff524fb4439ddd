'use strict';
// A loop that is held up for known times, each in a turn of its own, for as long as it lives.
//
// Truth: every hold-up as [start, end], and the percentiles of `monitorEventLoopDelay` in ns, over the seconds after the
// start. Its values are whole intervals of its timer: they include the resolution.
const { monitorEventLoopDelay } = require('perf_hooks');
const { busy, now, serve } = require('./truth.js');

// Three of five are the shortest and one the longest: the median and the 99th percentile lie well inside a class.
const HOLD_UPS_MS = [20, 80, 20, 40, 20];
const RESOLUTION_MS = 10;
const OBSERVED_SECONDS = 4.9;

const holdUps = [];
const histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });

let next = 0;
function turn() {
  const from = now();
  busy(HOLD_UPS_MS[next++ % HOLD_UPS_MS.length]);
  holdUps.push([from, now()]);
  // Not after a pause: one that a busy machine stretches lets the monitor's timer fall due before the next hold-up, and in
  // the same turn; which of the two comes first would decide whether that counts.
  setImmediate(turn);
}

let monitor;
function observe() {
  histogram.reset();
  setTimeout(() => {
    monitor = {
      resolution: RESOLUTION_MS * 1e6,
      p45: histogram.percentile(45),
      p50: histogram.percentile(50),
      p55: histogram.percentile(55),
      p90: histogram.percentile(90),
      p99: histogram.percentile(99),
    };
  }, OBSERVED_SECONDS * 1e3);
}

histogram.enable();
turn();
serve(() => ({ holdUps, monitor }), observe);
