'use strict';
// Ends, or becomes another program, a moment after it is told to.
//
//   node life.js exit CODE | kill | exec PROGRAM ARGUMENT...      (exec needs process.execve: Node 22.15, 23.11)
const { busy } = require('./truth.js');

const [how, ...rest] = process.argv.slice(2);
const ends = {
  exit: () => process.exit(Number(rest[0])),
  kill: () => process.kill(process.pid, 'SIGKILL'),
  exec: () => process.execve(rest[0], rest, process.env),
};
setInterval(() => busy(2), 10);
process.stdin.once('data', () => setTimeout(ends[how], 1_000));
process.stdin.on('end', () => process.exit(0));
process.stdout.write('READY\n');
