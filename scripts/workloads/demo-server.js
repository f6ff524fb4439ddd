// An HTTP server with what goes wrong in real ones: a synchronous read in a handler, password hashing in the thread pool, garbage,
// and a timer that keeps the event loop to itself for 80 ms once a second. It knows nothing of being traced.
//
// Prints `listening on PORT`. Routes: /read, /hash, /garbage; anything else is answered at once.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');

const BUSY_MS = 80;
const BUSY_EVERY_MS = 1000;
const HASH_ROUNDS = 2000;
const GARBAGE_OBJECTS = 2000;
const KEPT_RESPONSES = 50;

function readConfiguration() {
  return fs.readFileSync(__filename, 'utf8');
}

function hashPassword(done) {
  crypto.pbkdf2('correct horse', 'battery staple', HASH_ROUNDS, 32, 'sha256', (error, key) => {
    done(error ? error.message : key.toString('hex'));
  });
}

// Most dies young; what is kept for a while is what the old generation's collector works on.
const kept = [];
function renderPage() {
  const rows = [];
  for (let i = 0; i < GARBAGE_OBJECTS; i++) rows.push({ id: i, name: `row ${i}`, tags: [i, i + 1] });
  kept.push(rows);
  if (kept.length > KEPT_RESPONSES) kept.shift();
  return JSON.stringify(rows.slice(0, 20));
}

function recomputeStatistics() {
  const end = performance.now() + BUSY_MS;
  let sum = 0;
  while (performance.now() < end) sum += Math.sqrt(sum + 1);
  return sum;
}
setInterval(recomputeStatistics, BUSY_EVERY_MS);

const server = http.createServer((request, response) => {
  switch (request.url) {
    case '/read':
      response.end(readConfiguration());
      break;
    case '/hash':
      hashPassword((hash) => response.end(hash));
      break;
    case '/garbage':
      response.end(renderPage());
      break;
    default:
      response.end('hello\n');
  }
});
server.listen(0, '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
