'use strict';
// The second story: an Express application to which the same things are added again and again on a timer.
//
//   node story-express.js express4|express5 static|middleware|routes [--healthy]
//
// static: the handler of static files, as Netflix did; middleware: synchronous middleware; routes: routes that no request matches.
// With --healthy they are added once. Its port follows READY; `truth` on standard input is answered with one line of JSON, and the
// end of standard input ends it.
const { createRequire } = require('module');
const path = require('path');

const modules = process.env.STORY_MODULES ?? path.join(__dirname, '../../.cache/workloads');
const express = createRequire(path.join(modules, '/'))(process.argv[2] ?? 'express5');
const kind = process.argv[3] ?? 'static';
const healthy = process.argv.includes('--healthy');

/// Ten times an hour, in a hurry.
const PERIOD_MS = 500;

const app = express();
let requests = 0;
let n = 0;
const add = {
  static: () => app.use(express.static(__dirname)),
  // As much as looking at a cookie costs.
  middleware: () => {
    for (let i = 0; i < 80; i++) app.use(function readCookie(request, response, next) { request.cookie = Object.entries(request.headers).filter(([name]) => name === 'cookie').join(); next(); });
  },
  routes: () => { for (let i = 0; i < 400; i++) app.get(`/r${n++}/:id`, (request, response) => response.end('dead')); },
}[kind];

add();
if (!healthy) {
  setInterval(() => {
    add();
    // What answers stays last in the list.
    const stack = (app._router ?? app.router).stack;
    const at = stack.findIndex((layer) => layer.route?.path === '/hello');
    stack.push(...stack.splice(at, 1));
  }, PERIOD_MS);
}
app.get('/hello', (request, response) => { requests++; response.end('hello'); });

const server = app.listen(0, '127.0.0.1', () => process.stdout.write(`READY ${server.address().port}\n`));
process.stdin.on('data', (data) => {
  if (!String(data).includes('truth')) return;
  process.stdout.write(`TRUTH ${JSON.stringify({ requests, layers: (app._router ?? app.router).stack.length })}\n`);
});
process.stdin.on('end', () => process.exit(0));
