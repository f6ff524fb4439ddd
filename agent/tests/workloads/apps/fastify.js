'use strict';
// An application of Fastify: hooks, plugins, schemas of what comes and goes, for which it writes code of its own.
//
//   node fastify.js PACKAGES
const { listening, packages } = require('./app.js');

const fastify = packages(process.argv[2])('fastify')();
const items = Array.from({ length: 400 }, (_, i) => ({ id: i, title: `item ${i}`, price: (i * 37) % 1000 }));

fastify.addHook('onRequest', function notesBegin(request, reply, done) {
  request.begin = process.hrtime();
  done();
});
fastify.addHook('preHandler', async function checksToken(request) {
  request.user = check(JSON.stringify(request.headers));
});
fastify.addHook('onSend', function signsAnswer(request, reply, payload, done) {
  reply.header('x-check', check(payload));
  done(null, payload);
});

function check(text) {
  let sum = 0;
  for (let i = 0; i < text.length; i++) sum = (sum * 31 + text.charCodeAt(i)) | 0;
  return sum;
}

const item = { type: 'object', properties: { id: { type: 'integer' }, title: { type: 'string' }, price: { type: 'number' } } };
const list = { type: 'array', items: item };
const line = { type: 'object', required: ['id', 'count'], properties: { id: { type: 'integer' }, count: { type: 'integer', minimum: 1 } } };

fastify.register(async function shop(api) {
  api.get('/items/:id', {
    schema: { params: { type: 'object', properties: { id: { type: 'integer' } } }, response: { 200: list } },
  }, async function showsItems(request) {
    return near(request.params.id);
  });

  api.get('/report', function makesReport(request, reply) {
    reply.type('text/plain').send(Object.entries(grouped()).join('\n'));
  });

  api.post('/baskets', {
    schema: { body: { type: 'object', properties: { lines: { type: 'array', items: line } } } },
  }, async function fillsBasket(request, reply) {
    reply.code(201);
    return { total: request.body.lines.reduce((sum, { id, count }) => sum + items[id % items.length].price * count, 0) };
  });
}, { prefix: '/api' });

const distance = (a, b) => Math.abs(a.price - b.price) + (a.id === b.id ? 1e3 : 0);
function near(id) {
  const one = items[id % items.length];
  return [...items].sort((a, b) => distance(one, a) - distance(one, b)).slice(0, 20);
}

function grouped() {
  const groups = {};
  for (const { id, price } of items) groups[`t${id % 9}`] = (groups[`t${id % 9}`] ?? 0) + price;
  return groups;
}

fastify.listen({ port: 0, host: '127.0.0.1' }).then(() => listening(fastify.server.address().port));
