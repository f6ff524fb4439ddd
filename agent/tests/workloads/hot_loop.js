'use strict';
// Turns its loop as often as it can, until it is told to end.
const { now, serve } = require('./truth.js');

let turns = 0;
let begin;

serve(() => ({ turns_a_second: turns / (now() - begin) * 1e9 }), () => {
  begin = now();
  (function turn() {
    turns++;
    setImmediate(turn);
  })();
});
