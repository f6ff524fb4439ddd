'use strict';
// Gives the thread pool as many items as it takes, and counts them by time.
const fs = require('fs');
const { now, serve } = require('./truth.js');

const IN_FLIGHT = 32;
const EVERY_NS = 10e6;

const log = [];
let done = 0;
let next = 0;

function one() {
  fs.stat('/', () => {
    done++;
    const at = now();
    if (at >= next) {
      log.push([at, done]);
      next = at + EVERY_NS;
    }
    one();
  });
}

serve(() => ({ log }), () => {
  for (let i = 0; i < IN_FLIGHT; i++) one();
});
