// Where its time goes is known: a third of it each in two functions, a third in the thread pool; and a read that blocks.
'use strict';

const { pbkdf2, pbkdf2Sync } = require('node:crypto');
const { execFileSync } = require('node:child_process');

function burnInJavaScript(ms) {
  const end = performance.now() + ms;
  let n = 0;
  while (performance.now() < end) for (let i = 0; i < 10_000; i++) n = (n * 31 + i) | 0;
  return n;
}

function burnInNative(ms) {
  const end = performance.now() + ms;
  while (performance.now() < end) pbkdf2Sync('password', 'salt', 500, 32, 'sha256');
}

function waitForAChild() {
  execFileSync('sleep', ['0.05']);
}

// Not before it is told to: whoever looks at it first sees its loop wait.
const run = () => setInterval(() => {
  burnInJavaScript(30);
  burnInNative(30);
  waitForAChild();
  pbkdf2('password', 'salt', 20_000, 32, 'sha256', () => {});
}, 10);
process.stdin.once('data', run).on('end', () => process.exit(0));
console.log('READY');
