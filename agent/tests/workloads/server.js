'use strict';
// An HTTP server that answers every request with `ok`: its port follows READY. For what a target must survive.
const http = require('http');

const server = http.createServer((request, response) => response.end('ok'));
server.listen(0, '127.0.0.1', () => process.stdout.write(`READY ${server.address().port}\n`));
process.stdin.on('end', () => process.exit(0));
process.stdin.resume();
