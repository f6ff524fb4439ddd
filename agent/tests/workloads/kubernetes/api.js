// An API server as far as the agent asks one: pods of a node (list, watch), and who owns a ReplicaSet. What it answers has the form
// of recorded answers; what it is to do it is told on standard input, one JSON object a line.
//   node api.js KEY CERTIFICATE PODS
'use strict';
const https = require('node:https');
const { readFileSync } = require('node:fs');

const [key, cert, list] = process.argv.slice(2).map((path) => readFileSync(path));
let pods = JSON.parse(list);
let token = 'first';
let down = false;
let gone = false;
const watches = new Set();

const refuse = (response, code, reason, message) => {
  response.writeHead(code, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Failure', message, reason, code }));
};

const answer = (response, object) => {
  response.writeHead(200, { 'content-type': 'application/json' });
  response.end(JSON.stringify(object));
};

const server = https.createServer({ key, cert }, (request, response) => {
  const url = new URL(request.url, 'https://api');
  console.log(`REQUEST ${url.pathname} watch=${url.searchParams.get('watch')} from=${url.searchParams.get('resourceVersion')}`);
  if (request.headers.authorization !== `Bearer ${token}`) {
    refuse(response, 401, 'Unauthorized', 'Unauthorized');
  } else if (url.pathname === '/apis/apps/v1/namespaces/shop/replicasets/cart-6d8f7b9c5d') {
    if (!request.headers.accept.includes('as=PartialObjectMetadata')) {
      refuse(response, 406, 'NotAcceptable', 'the test wants metadata only');
      return;
    }
    const owner = { apiVersion: 'apps/v1', blockOwnerDeletion: true, controller: true, kind: 'Deployment', name: 'cart', uid: 'd' };
    answer(response, {
      kind: 'PartialObjectMetadata',
      apiVersion: 'meta.k8s.io/v1',
      metadata: { name: 'cart-6d8f7b9c5d', namespace: 'shop', ownerReferences: [owner] },
    });
  } else if (url.pathname !== '/api/v1/pods' || url.searchParams.get('fieldSelector') !== 'spec.nodeName=node-1') {
    refuse(response, 403, 'Forbidden', 'pods is forbidden: only those of node-1');
  } else if (!url.searchParams.get('watch')) {
    answer(response, pods);
  } else if (gone) {
    gone = false;
    refuse(response, 410, 'Expired', 'too old resource version');
  } else {
    response.writeHead(200, { 'content-type': 'application/json', 'transfer-encoding': 'chunked' });
    response.flushHeaders();
    watches.add(response);
    response.on('close', () => watches.delete(response));
  }
});
server.on('connection', (socket) => {
  if (down) socket.destroy();
});
server.on('tlsClientError', () => {});

const emit = (event) => {
  const line = `${JSON.stringify(event)}\n`;
  // In two pieces, as it may come.
  for (const response of watches) {
    response.write(line.slice(0, 20));
    setTimeout(() => response.write(line.slice(20)), 10);
  }
};

require('node:readline').createInterface(process.stdin).on('line', (line) => {
  const told = JSON.parse(line);
  if (told.pods) pods = told.pods;
  if (told.token) token = told.token;
  if (told.gone) gone = true;
  if (told.down !== undefined) down = told.down;
  if (told.emit) emit(told.emit);
  if (told.cut) for (const response of watches) response.destroy();
}).on('close', () => process.exit());

server.listen(0, '127.0.0.1', () => console.log(`READY ${server.address().port}`));
