'use strict';
// Thread-pool work of every kind, in batches submitted at once: run it with UV_THREADPOOL_SIZE set.
//
// Truth: every request as [kind, batch, submitted, called back], in order of submission. The requests of a batch of
// `pbkdf2` are equal, so in a pool of P threads the k-th (from 0) starts when the (k - P + 1)-th has ended, or at once.
const crypto = require('crypto');
const dns = require('dns');
const fs = require('fs');
const zlib = require('zlib');
const { busy, deadline, now, serve } = require('./truth.js');

const PASSWORD = Buffer.alloc(32, 1);
const BATCH = 8;
const RUN_MS = 6;
const text = Buffer.from('all work and no play '.repeat(20));

/** PBKDF2 iterations that take RUN_MS here. */
function calibrate() {
  busy(50);
  const probe = 20_000;
  let best = Infinity;
  for (let i = 0; i < 5; i++) {
    const start = now();
    crypto.pbkdf2Sync(PASSWORD, 'salt', probe, 32, 'sha256');
    best = Math.min(best, now() - start);
  }
  return Math.round(probe * RUN_MS * 1e6 / best);
}
const iterations = calibrate();

// How many items each request hands to the pool: readFile opens, sizes, reads and closes.
const kinds = {
  pbkdf2: (done) => crypto.pbkdf2(PASSWORD, 'salt', iterations, 32, 'sha256', done),
  stat: (done) => fs.stat(__filename, done),
  readFile: (done) => fs.readFile(__filename, done),
  lookup: (done) => dns.lookup('localhost', { family: 4 }, done),
  deflate: (done) => zlib.deflate(text, done),
};

const log = [];
let batch = 0;
const ACTIVE_SECONDS = 1.5;

function run(kind) {
  const number = batch++;
  return new Promise((resolve) => {
    let left = BATCH;
    for (let i = 0; i < BATCH; i++) {
      const item = [kind, number, now(), 0];
      log.push(item);
      kinds[kind]((error) => {
        item[3] = now();
        if (error) throw error;
        if (--left === 0) resolve();
      });
    }
  });
}

async function rounds() {
  const end = deadline(ACTIVE_SECONDS);
  while (now() < end) {
    for (const kind of Object.keys(kinds)) {
      await run(kind);
      // Apart, so that no batch queues behind another.
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}

// The kinds' first calls load code from disk, some of it through the pool.
Promise.all(Object.keys(kinds).map(run)).then(() => {
  log.length = 0;
  let done;
  serve(async () => {
    await done;
    return { items: log };
  }, () => { done = rounds(); });
});
