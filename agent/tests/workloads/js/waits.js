'use strict';
// Asynchronous ways to come to be on a stack; each scenario is a promise that ends after its last stop.
const { promisify } = require('util');
const { stop } = require('./spot.js');

const tick = promisify(setImmediate);

async function leaf() {
  await null;
  return stop('await');
}
async function middle() {
  const value =
    await leaf();
  return value;
}

class Service {
  async call() { return await middle(); }
}

async function before() {
  stop('before await');
  await null;
}

async function* numbers() {
  await null;
  yield stop('async generator');
}

const later = (schedule, spot) => new Promise((resolve) => schedule(function callback() { resolve(stop(spot)); }));

module.exports = {
  await: () => middle(),
  method: async () => { await new Service().call(); },
  before: () => before(),
  rejected: async () => {
    try {
      await Promise.reject(new Error('expected'));
    } catch {
      stop('rejected');
    }
  },
  awaitTwice: async () => {
    await tick();
    await leaf();
    stop('after');
  },
  all: async () => { await Promise.all([leaf(), before()]); },
  allSettled: async () => { await Promise.allSettled([leaf(), before()]); },
  any: async () => { await Promise.any([leaf(), before()]); },
  race: async () => { await Promise.race([leaf()]); },
  then: () => Promise.resolve(1).then((value) => stop('then')).then(() => leaf()),
  executor: () => new Promise((resolve) => resolve(stop('executor'))),
  thenable: async () => { await { then(resolve) { resolve(stop('thenable')); } }; },
  generator: async () => { for await (const one of numbers()) if (one) return one; },
  microtask: () => later(queueMicrotask, 'microtask'),
  nextTick: () => later(process.nextTick, 'nextTick'),
  immediate: () => later(setImmediate, 'immediate'),
  timeout: () => later((run) => setTimeout(run, 1), 'timeout'),
  file: () => later((run) => require('fs').stat(__filename, run), 'file'),
};
