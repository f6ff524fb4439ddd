// A heap whose objects are known, alive and dead, young and old. On SIGUSR2 it writes a heap snapshot and says what that counts.
'use strict';
const v8 = require('v8'), fs = require('fs'), os = require('os'), path = require('path');

class Order { constructor(i) { this.id = i; this.items = [i]; } }
class Customer { constructor(i) { this.name = 'c' + i; this.orders = new Map([[i, i]]); } }
class Base { constructor(i) { this.base = i; } }
class Derived extends Base { constructor(i) { super(i); this.own = i; } }
class Registry extends Map { constructor(i) { super(); this.id = i; } }
function Legacy(i) { this.a = i; }

const keep = [];
const weak = new WeakMap();
for (let i = 0; i < 30000; i++) {
  const order = new Order(i);
  keep.push(order);
  if (i % 3 === 0) keep.push(new Customer(i));
  if (i % 2 === 0) keep.push(new Legacy(i));
  if (i % 5 === 0) { keep.push(new Derived(i)); keep.push(new Base(i)); }
  if (i % 10 === 0) keep.push(new Registry(i), new Set([i]), Promise.resolve(i), () => order);
  keep.push({ literal: i, two: 2 });
  // Values of a weak map live as long as their keys do: half of these are gone.
  weak.set(i % 2 === 0 ? order : {}, new Date(i));
}
globalThis.keep = keep;
globalThis.weak = weak;
for (let round = 0; round < 20; round++) {
  const garbage = [];
  for (let i = 0; i < 20000; i++) { garbage.push(new Order(i)); garbage.push(new Legacy(i)); }
}

// Grows on demand, by a class that was not there before.
class Leaked { constructor(i) { this.i = i; } }
const leaked = globalThis.leaked = [];
process.on('SIGHUP', () => {
  for (let i = 0; i < 7000; i++) leaked.push(new Leaked(i));
  console.log('grown');
});

// Makes objects all the time.
let young = [];
if (process.argv[2] === 'busy') {
  setInterval(() => {
    for (let i = 0; i < 20000; i++) young.push(new Order(i));
    young = young.slice(-1000);
  }, 1);
} else {
  setInterval(() => {}, 1000);
}

process.on('SIGUSR2', () => {
  const file = path.join(os.tmpdir(), `agent-heap-${process.pid}.heapsnapshot`);
  v8.writeHeapSnapshot(file);
  const snapshot = JSON.parse(fs.readFileSync(file));
  fs.unlinkSync(file);
  const { node_fields: fields, node_types: types } = snapshot.snapshot.meta;
  const [type, name, size] = ['type', 'name', 'self_size'].map((field) => fields.indexOf(field));
  const counts = {};
  for (let at = 0; at < snapshot.nodes.length; at += fields.length) {
    if (types[0][snapshot.nodes[at + type]] !== 'object') continue;
    const of = snapshot.strings[snapshot.nodes[at + name]];
    counts[of] = counts[of] || { objects: 0, bytes: 0 };
    counts[of].objects++;
    counts[of].bytes += snapshot.nodes[at + size];
  }
  console.log(JSON.stringify(counts));
});
console.log('ready');
