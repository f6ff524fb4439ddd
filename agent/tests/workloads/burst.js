'use strict';
// A little work each 40 ms, on the loop and on the thread pool, as long as standard input is open.
const fs = require('fs');

setInterval(() => fs.stat('/', () => {}), 40);
process.stdin.on('end', () => process.exit(0)).resume();
process.stdout.write('READY\n');
