'use strict';
// A file that V8 keeps with two bytes a character, as some of them are beyond Latin-1: 漢字 and 🎉.
const { stop } = require('./spot.js');

function größe(n) { return n > 0 ? größe(n - 1) : stop('größe'); }
const 函数 = (叶) => 叶();
const 对象 = { 方法() { return 函数(() => stop('方法')); }, 'ключ 🎉': () => 对象.方法() };
class Élan { constructor() { this.été = stop('Élan'); } static 作る() { return new Élan(); } }

module.exports = {
  latin: () => größe(2),
  wide: () => 对象['ключ 🎉'](),
  ascii: function plainName() { return stop('plain name'); },
  // 🎉 is two units of UTF-16, and this text comes before the call: '🎉🎉🎉🎉'
  class: () => { const text = '🎉🎉'; return text.length + Élan.作る(); },
};
