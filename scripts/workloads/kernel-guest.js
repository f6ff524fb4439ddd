// What a guest kernel traces: every 100 ms a busy loop of 30 ms in a function of its own, and a file that is read synchronously.
'use strict';
const fs = require('fs');

function burn(until) {
  let sum = 0;
  while (Date.now() < until) sum += Math.sqrt(sum + 1);
  return sum;
}

function onTimer() {
  burn(Date.now() + 30);
  fs.readFileSync('/proc/self/stat');
}

setInterval(onTimer, 100);
