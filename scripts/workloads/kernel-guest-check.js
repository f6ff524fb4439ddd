// Reads the records of a trace of kernel-guest.js, and fails unless they say what that program does.
'use strict';
const assert = require('assert');
const fs = require('fs');

const records = fs.readFileSync(process.argv[2], 'utf8').trim().split('\n').map((line) => JSON.parse(line));
const of = (type) => records.filter((record) => record.type === type);

const end = of('end')[0];
assert(end && end.balanced, 'the books balance');
for (const family of end.families) assert.strictEqual(family.dropped, 0, `${family.family} dropped nothing`);

const windows = of('window').slice(1);
assert(windows.length >= 3, 'there are windows');
for (const window of windows) {
  const main = window.loops[0];
  assert(Math.abs(main.unaccounted_ns) <= main.wall_ns / 100, 'the ledger closes');
}
const sum = (of) => windows.reduce((total, window) => total + of(window.loops[0]), 0);
const timers = sum((main) => main.on_cpu_by_phase_ns.timers) / sum((main) => main.on_cpu_ns);
assert(timers > 0.5, `most of the time on CPU is in timers, not ${timers}`);
assert(sum((main) => main.sync_fs) > 0, 'synchronous requests are seen');
assert(of('slow_turn').length > 10, 'slow turns are seen');

const stacks = new Map(of('stack').map((stack) => [stack.id, stack]));
const places = of('profile').slice(1).flatMap((profile) => profile.stacks).filter((place) => place.class === 'event_loop');
let samples = 0;
let complete = 0;
let burning = 0;
for (const place of places) {
  samples += place.samples;
  const stack = stacks.get(place.user_stack);
  if (!stack) continue;
  const names = stack.frames.map((frame) => frame.name);
  if (names[names.length - 1] === '_start') complete += place.samples;
  if (stack.frames.some((frame) => frame.name === 'burn' && frame.line >= 5 && frame.line <= 9)) burning += place.samples;
}
assert(samples > 50, `there are samples: ${samples}`);
assert(complete >= samples * 0.95, `stacks reach down to where the program began: ${complete} of ${samples}`);
assert(burning >= samples * 0.5, `the function that burns is named: ${burning} of ${samples}`);
