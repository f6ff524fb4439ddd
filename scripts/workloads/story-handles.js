'use strict';
// The first story: an HTTP server of which something grows with each request.
//
//   node story-handles.js global|scope|native|watcher|udp|socket|js|session|timer [--healthy]
//
// With --healthy, the same work done right: what is made is given back, caches have a limit, bursts are freed. Its port follows
// READY; `truth` on standard input is answered with one line of JSON, and the end of standard input ends it.
const dgram = require('dgram');
const fs = require('fs');
const http = require('http');
const net = require('net');
const path = require('path');
const v8 = require('v8');
const { EventEmitter } = require('events');

const kind = process.argv[2] ?? 'global';
const healthy = process.argv.includes('--healthy');
const addon = () => require(process.env.STORY_ADDON ?? path.join(__dirname, '../../.cache/workloads/story-handles.node'));

const NATIVE_BYTES = 4096;
/// Entries of the healthy cache: full after five seconds at 400 requests a second.
const CACHE_MAX = 2000;
/// Requests whose working memory lives on for a while, as that of slow requests does: it is old when it is garbage.
const RECENT_MAX = 1000;

let requests = 0;
const held = [];

// A: a global handle for each request.
function referTo(native) {
  return function handler(id) {
    const answer = { id, at: Date.now() };
    if (healthy) native.use(answer); else native.keep(answer);
  };
}

// B: handles for each request in the one scope of a call that never returns.
function insideOneScope(native) {
  setImmediate(() => {
    const turn = () => { process._tickCallback(); return true; };
    if (healthy) native.spinScoped(turn); else native.spin(turn);
  });
  return () => native.touch();
}

// C: plain memory.
function forgetMemory(native) {
  return function handler() {
    if (healthy) native.borrow(NATIVE_BYTES); else native.forget(NATIVE_BYTES);
  };
}

// D: a handle of libuv.
function openHandle(open) {
  return function handler() {
    const handle = open();
    if (healthy) handle.close?.() ?? handle.destroy?.(); else held.push(handle);
  };
}

function openSocket() {
  const sink = net.createServer((socket) => socket.resume()).listen(0, '127.0.0.1');
  return openHandle(() => {
    const socket = net.connect(sink.address().port, '127.0.0.1');
    socket.on('error', () => {});
    if (healthy) socket.on('connect', () => socket.destroy());
    return healthy ? { close() { return true; } } : socket;
  });
}

// E: JavaScript objects: a map that grows, and listeners that are added and never removed.
function remember() {
  const sessions = new Map();
  const events = new EventEmitter();
  events.setMaxListeners(0);
  if (healthy) {
    // A burst each five seconds, which is given back.
    setInterval(() => { let burst = Array.from({ length: 50_000 }, (_, i) => ({ i, text: `burst ${i}` })); burst = null; }, 5000);
  }
  const recent = [];
  return function handler(id) {
    recent[id % RECENT_MAX] = Array.from({ length: 400 }, (_, i) => ({ i: id + i }));
    const session = { id, started: new Date(), history: Array.from({ length: 250 }, (_, i) => ({ i: id * i })) };
    sessions.set(id, session);
    if (healthy) {
      if (sessions.size > CACHE_MAX) sessions.delete(sessions.keys().next().value);
      return;
    }
    events.on('change', () => session.started);
  };
}

// F: a little for each request, so that the heap is hardly ever collected as a whole: sessions that are never closed.
class Session {
  constructor(id) {
    this.id = id;
    this.seen = new Array(100).fill(id);
  }
}

function openSession() {
  const sessions = new Map();
  return function handler(id) {
    sessions.set(id, new Session(id));
    if (healthy && sessions.size > CACHE_MAX) sessions.delete(sessions.keys().next().value);
  };
}

// G: a timer for each request, which holds what the request held.
function setTimer() {
  return function handler(id) {
    const answer = { id, text: new Array(100).fill(id) };
    const timer = setInterval(() => answer.id, 3_600_000);
    if (healthy) clearInterval(timer);
  };
}

const handlers = {
  global: () => referTo(addon()),
  scope: () => insideOneScope(addon()),
  native: () => forgetMemory(addon()),
  watcher: () => openHandle(() => fs.watch(__dirname, () => {})),
  udp: () => openHandle(() => dgram.createSocket('udp4')),
  socket: openSocket,
  js: remember,
  session: openSession,
  timer: setTimer,
};
const handler = handlers[kind]();

const server = http.createServer((request, response) => {
  requests++;
  handler(requests);
  response.end('ok');
});
server.listen(0, '127.0.0.1', () => process.stdout.write(`READY ${server.address().port}\n`));

process.stdin.on('data', (data) => {
  for (const line of String(data).split('\n')) {
    if (line !== 'truth') continue;
    const resources = {};
    for (const name of process.getActiveResourcesInfo?.() ?? []) resources[name] = (resources[name] ?? 0) + 1;
    const truth = { at: Number(process.hrtime.bigint()), requests, heap: v8.getHeapStatistics(), memory: process.memoryUsage(), resources };
    process.stdout.write(`TRUTH ${JSON.stringify(truth)}\n`);
  }
});
process.stdin.on('end', () => process.exit(0));
