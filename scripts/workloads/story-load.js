'use strict';
// Requests at a steady rate: node story-load.js PORT [REQUESTS A SECOND] [PATH]. At the end of its standard input, or at SIGTERM, it
// prints how many were answered.
const http = require('http');

const [port, rate = '400', path = '/'] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });
const began = process.hrtime.bigint();
let sent = 0, answered = 0, failed = 0;

function send() {
  sent++;
  const request = http.get({ port, host: '127.0.0.1', path, agent }, (response) => {
    response.resume();
    response.on('end', () => { answered++; });
  });
  request.on('error', () => { failed++; });
}

const timer = setInterval(() => {
  const due = Number(process.hrtime.bigint() - began) / 1e9 * Number(rate);
  // A server that cannot keep up is not buried.
  while (sent < due && sent - answered - failed < 64) send();
}, 5);

function end() {
  clearInterval(timer);
  process.stdout.write(`ANSWERED ${JSON.stringify({ sent, answered, failed })}\n`, () => process.exit(0));
}
process.stdin.on('end', end).resume();
process.on('SIGTERM', end);
process.stdout.write('READY\n');
