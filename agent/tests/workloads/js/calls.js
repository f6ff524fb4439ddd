'use strict';
// Ways to come to be on a stack: one scenario each, which stops once. Functions are where one would not look for them on
// purpose: several in a line, calls that span lines, names that V8 has to guess.
const vm = require('vm');
const { EventEmitter } = require('events');
const { stop } = require('./spot.js');

const scenarios = {};

// Plain functions.

function plain(n) { return n > 0 ? plain(n - 1) : stop('plain'); }
scenarios.plain = () => plain(3);

const DEPTH = 400;
function dive(depth) {
  if (depth === 0) return stop('deep');
  return dive(depth - 1) + 1;
}
scenarios.deep = () => dive(DEPTH);

function even(n) {
  return n === 0 ? stop('mutual') : odd(n - 1);
}
function odd(n) {
  return even(n - 1);
}
scenarios.mutual = () => even(20);

scenarios.multiline = () => {
  const through = (...of) => of;
  return through(
    1,
    through(2,
      stop(
        'multiline',
      )),
  );
};

scenarios.chained = () => ({
  a() { return this; },
  b() { return this; },
  c(f) { return f(); },
})
  .a()
  .b()
  .c(
    () => stop('chained'),
  );

scenarios.oneLine = () => { const a = () => b(), b = () => c(), c = () => stop('oneLine'); return a(); };

function rest(...all) { return all.length + stop('rest'); }
scenarios.rest = () => rest(...[1, 2, 3], 4);
function adapted(a, b, c) { return [a, b, c, stop('adapted')]; }
scenarios.tooFew = () => adapted(1);
scenarios.tooMany = () => adapted(1, 2, 3, 4, 5, 6);
function defaults(a = stop('defaults')) { return a; }
scenarios.defaults = () => defaults();

scenarios.iife = () => (function () { return (() => stop('iife'))(); })();
scenarios.named = () => (function inner(n) { return n ? inner(n - 1) : stop('named'); })(2);

// What an exception goes through.

scenarios.tryCatch = () => {
  try {
    throw new TypeError('caught');
  } catch {
    return stop('catch');
  }
};
scenarios.tryFinally = () => {
  try {
    return 1;
  } finally {
    stop('finally');
  }
};

// Names that are not written before `function`.

const assigned = {};
assigned.method = function () { return stop('assigned'); };
assigned.arrow = () => assigned.method();
assigned.nested = {};
assigned.nested.deeper = () => assigned.arrow();
scenarios.assigned = () => assigned.nested.deeper();

const table = [() => stop('table'), function () { return table[0](); }];
scenarios.table = () => table[1]();

const computed = {
  ['com' + 'puted']() { return stop('computed'); },
  [Symbol('quiet')]() {},
  [Symbol.for('spot')]() { return this.computed(); },
  12() { return this[Symbol.for('spot')](); },
  'with space'() { return this[12](); },
};
scenarios.computed = () => computed['with space']();

function Old() { this.value = Old.build(); }
Old.build = function () { return Old.prototype.go(); };
Old.prototype.go = function () { return stop('prototype'); };
scenarios.viaPrototype = () => new Old();

const renamed = function original() { return stop('renamed'); };
scenarios.renamed = () => renamed();

// Classes.

class Base {
  constructor() { this.base = stop('constructor'); }
}
class Middle extends Base {
  constructor(...all) {
    super(...all);
    this.middle = 1;
  }
}
class Derived extends Middle {}
scenarios.constructors = () => new Derived(1);

class Members {
  field = this.#hidden();
  #hidden() { return this.visible; }
  get visible() { return Members.kind; }
  set visible(value) { stop('setter'); }
  static get kind() { return Members.#secret(); }
  static #secret() { return stop('members'); }
  *[Symbol.iterator]() { yield stop('iterator'); }
  static ['made' + 'Up'](value) { return new Members.Inner(value); }
  static Inner = class { constructor() { stop('inner'); } };
}
scenarios.members = () => new Members();
scenarios.setter = () => { new Members().visible = 1; };
scenarios.iterator = () => [...new Members()];
scenarios.forOf = () => { for (const one of new Members()) if (one) return one; };
scenarios.madeUp = () => Members.madeUp(1);

const makeClass = () => class {
  static now = stop('static field');
  static { stop('static block'); }
};
scenarios.staticBlock = () => makeClass();

// Calls that go through V8's own functions.

const once = (run) => { let done = false; return (...all) => { if (!done) { done = true; run(); } return all[0]; }; };
const list = [3, 1, 2];
scenarios.map = () => list.map(once(() => stop('map')));
scenarios.forEach = () => list.forEach(once(() => stop('forEach')));
scenarios.filter = () => list.filter((n) => n === 3 && stop('filter'));
scenarios.reduce = () => list.reduce((sum, n) => sum + (n === 2 ? stop('reduce') : n), 0);
scenarios.find = () => list.find((n) => n === 1 && stop('find'));
scenarios.some = () => list.some((n) => stop('some'));
scenarios.flatMap = () => [1].flatMap((n) => stop('flatMap'));
scenarios.sort = () => [...list].sort(once(() => stop('sort')));
scenarios.from = () => Array.from([1], () => stop('from'));
scenarios.typed = () => new Uint8Array([2, 1]).sort(once(() => stop('typed')));
scenarios.mapForEach = () => new Map([[1, 2]]).forEach(() => stop('Map.forEach'));
scenarios.reviver = () => JSON.parse('{"a":1}', (key, value) => (key === 'a' ? stop('reviver') : value));
scenarios.toJson = () => JSON.stringify({ toJSON() { return stop('toJSON'); } });
scenarios.replace = () => 'abc'.replace(/b/, () => stop('replace'));
scenarios.replaceAll = () => 'abc'.replaceAll('b', () => stop('replaceAll'));
scenarios.apply = () => Reflect.apply(stop, null, ['Reflect.apply']);
scenarios.construct = () => Reflect.construct(Base, [], Derived);
scenarios.call = () => stop.call(null, 'call');
scenarios.applied = () => stop.apply(null, ['apply']);
const bound = function boundTarget(a, b) { return [a, b, stop('bound')]; }.bind(null, 1);
scenarios.bound = () => bound(2);
scenarios.boundTwice = () => bound.bind(null, 3)();
const proxy = new Proxy(function target() { return stop('proxied'); }, {
  get: (target, key) => (key === 'trap' ? stop('trap') : Reflect.get(target, key)),
  apply: (target, self, all) => Reflect.apply(target, self, all),
});
scenarios.trap = () => proxy.trap;
scenarios.proxied = () => proxy();
scenarios.valueOf = () => +{ valueOf() { stop('valueOf'); return 1; } };
scenarios.toPrimitive = () => `${{ [Symbol.toPrimitive]: () => stop('toPrimitive') }}`;
scenarios.template = () => ((parts, value) => value())`a${() => stop('template')}b`;
scenarios.optional = () => ({ a: { b: () => stop('optional') } })?.a?.b?.();
scenarios.entries = () => Object.entries({ get a() { return stop('entries'); } });
scenarios.assign = () => Object.assign({}, { get a() { return stop('assign'); } });
scenarios.defineProperty = () => Object.defineProperty({}, 'a', { get: () => stop('defineProperty') }).a;
scenarios.emit = () => new EventEmitter().once('spot', function listener() { stop('emit'); }).emit('spot');

// Generators.

function* counter(n) {
  if (n > 0) yield* counter(n - 1);
  yield stop('generator');
}
scenarios.generator = () => counter(2).next();
scenarios.generatorReturn = () => {
  const one = (function* () { try { yield 1; } finally { stop('return'); } })();
  one.next();
  return one.return(2);
};

// Code from strings.

scenarios.eval = () => eval("\n  stop('eval')");
const indirect = eval;
global.spotStop = stop;
scenarios.indirect = () => indirect("(() => {\n\n  return spotStop('indirect');\n})()");
const made = new Function('stop', 'a', "return [a,\n  stop('new Function')];");
scenarios.made = () => made(stop, 1);
const script = new vm.Script("(function inVm(stop) {\n  return stop('vm');\n})", { filename: 'of-vm.js', lineOffset: 1000 });
const inVm = script.runInThisContext();
scenarios.vm = () => inVm(stop);
const other = vm.runInNewContext('(function elsewhere(f) { return [1].map(() => f())[0]; })', {}, 'context.js');
scenarios.context = () => other(() => stop('context'));
const labelled = indirect("(function labelled(stop) { return stop('sourceURL'); })\n//# sourceURL=labelled.js");
scenarios.sourceUrl = () => labelled(stop);

// Shapes of source text. Line ends of every kind count, and so does a byte order mark's absence from the text.

const odd_lines = indirect('(function lines(stop) {\r\n\r\n// \u2028 \u2029\n  return stop("line ends");\r})\n//# sourceURL=lines.js');
scenarios.lineEnds = () => odd_lines(stop);

const LOCALS = 90;
const locals = Array.from({ length: LOCALS }, (_, i) => `local${i}`);
const crowded = indirect(`(function crowded(stop) {
  let ${locals.join(' = 1, ')} = 1;
  const all = () => stop('crowded') + ${locals.join(' + ')};
  return all();
})
//# sourceURL=crowded.js`);
scenarios.crowded = () => crowded(stop);

// Bytecode whose offsets need two bytes and four, and lines past 65 536.
const longText = (lines, each) => `(function long(stop, a) {\n${each.repeat(lines)}  return stop('long');\n})\n//# sourceURL=long-${lines}.js`;
const long = [indirect(longText(300, '  a = a + 1;\n')), indirect(longText(70_000, '\n')), indirect(longText(9_000, '  a = a * 3 + 1;\n'))];
scenarios.long = () => long[0](stop, 1);
scenarios.manyLines = () => long[1](stop, 1);
scenarios.wide = () => long[2](stop, 1);

// Small functions that are inlined into one another.

const leaf = (n) => (n >= 0 ? stop('inlined') : n);
function twig(n) { return leaf(n) + 1; }
class Tree { branch(n) { return twig(n); } }
const tree = new Tree();
function trunk(n) {
  const two =
    tree.branch(n) + 1;
  return two;
}
scenarios.inlined = () => trunk(1);
scenarios.inlinedMap = () => [1].map((n) => trunk(n));

const shapes = [
  { go: () => stop('shape 0') },
  { a: 1, go: () => stop('shape 1') },
  { b: 1, go: () => stop('shape 2') },
];
scenarios.polymorphic = () => shapes.forEach((shape) => shape.go());

/** A loop that is hot in one call: its frame is replaced on the stack. */
scenarios.replaced = () => {
  let sum = 0;
  for (let i = 0; i < 60_000; i++) {
    sum += i % 7;
    if (i === 50_000) stop('replaced');
  }
  return sum;
};

/** What its optimised code rests on changes while it is on the stack: what it has called returns to somewhere else in it. */
scenarios.deoptimised = () => {
  class Rested { constant() { return 1; } }
  const rested = new Rested();
  const called = Array.from({ length: 6 }, (_, index) => new Function('change', `if (change) change(); return ${index}`));
  function rests(index, change) {
    const before = rested.constant();
    const between = called[index % 6](change);

    return before + between + rested.constant();
  }
  for (let i = 0; i < 30_000; i++) rests(i);
  return rests(0, () => {
    Rested.prototype.constant = () => 2;
    stop('deoptimised');
  });
};

// WebAssembly between.

// (module (import "a" "b" (func)) (func (export "c") call 0))
const wasm = new WebAssembly.Module(new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 2, 7, 1, 1, 97, 1, 98, 0, 0,
  3, 2, 1, 0, 7, 5, 1, 1, 99, 0, 1, 10, 6, 1, 4, 0, 16, 0, 11,
]));
const { exports: { c: throughWasm } } = new WebAssembly.Instance(wasm, { a: { b: () => { stop('wasm'); } } });
scenarios.wasm = () => throughWasm();

module.exports = scenarios;
