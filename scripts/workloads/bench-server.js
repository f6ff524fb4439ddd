// The server that `cargo xtask bench` loads: one kind of work a mode, and a count of finished requests.
//
//   node bench-server.js PORT http|pool|alloc
//
// Port 0 is any free one; READY is followed by the one it is.
//
// GET /count answers with the number of requests finished so far and is not counted itself.
'use strict';
const http = require('node:http');
const fs = require('node:fs');
const crypto = require('node:crypto');
const { Session } = require('node:inspector');

const [port, mode] = [Number(process.argv[2]), process.argv[3]];
let finished = 0;

const work = {
  http: (done) => done(),
  pool: (done) => {
    let left = 2;
    const one = () => { if (--left === 0) done(); };
    crypto.pbkdf2('secret', 'salt', 200, 32, 'sha256', one);
    fs.stat(__filename, one);
  },
  alloc: (done) => {
    const list = [];
    for (let i = 0; i < 2000; i++) list.push({ i, text: `item ${i}` });
    done(String(list.length));
  },
}[mode];

// SIGUSR2 switches V8's own profiler on and off: what another profiler is compared with.
let session;
process.on('SIGUSR2', () => {
  if (session) {
    const ending = session;
    session = undefined;
    ending.post('Profiler.stop', () => ending.disconnect());
    return;
  }
  session = new Session();
  session.connect();
  session.post('Profiler.enable');
  session.post('Profiler.setSamplingInterval', { interval: Math.round(1e6 / 99) });
  session.post('Profiler.start');
});

const server = http.createServer((request, response) => {
  if (request.url === '/count') {
    response.end(String(finished));
    return;
  }
  work((text = 'ok') => { finished++; response.end(text); });
});
// The connection that asks for the count may be quiet for as long as it likes.
server.keepAliveTimeout = 0;
server.listen(port, '127.0.0.1', () => console.log(`READY ${server.address().port}`));
