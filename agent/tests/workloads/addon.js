'use strict';
// Hashes passwords on the main thread with an addon in whose code there are no frame pointers, and which is not loaded before it is
// told to begin.
//
// Truth: how many were hashed.
const path = require('path');
const { serve } = require('./truth.js');

const ADDON = '../../../.cache/apps/node_modules/@node-rs/bcrypt-linux-x64-gnu';
/** Some milliseconds each. */
const COST = 6;

let hashed = 0;

serve(() => ({ hashed }), () => {
  const { hashSync } = require(path.join(__dirname, ADDON));
  setImmediate(function login() {
    hashSync(Buffer.from('correct horse'), COST);
    hashed++;
    setImmediate(login);
  });
});
