'use strict';
// An application of Express, with its routers, middleware before and errors after them.
//
//   node express.js PACKAGES express4|express5
const { listening, packages } = require('./app.js');

const [directory, name] = process.argv.slice(2);
const express = packages(directory)(name);
const items = Array.from({ length: 400 }, (_, i) => ({ id: i, title: `item ${i}`, price: (i * 37) % 1000, tags: ['a', 'b', `t${i % 9}`] }));

const app = express();
app.disable('x-powered-by');

app.use(function startsClock(req, res, next) {
  req.begin = process.hrtime();
  next();
});
app.use(express.json());
app.use(express.urlencoded({ extended: true }));

const check = (text) => {
  let sum = 0;
  for (let i = 0; i < text.length; i++) sum = (sum * 31 + text.charCodeAt(i)) | 0;
  return sum;
};

class Basket {
  constructor(lines) { this.lines = lines; }
  get total() {
    return this.lines.reduce((sum, { id, count }) => sum + items[id % items.length].price * count, 0);
  }
  discounted(rate) {
    const { total } = this;
    return Math.round(total * (1 - rate)) + this.lines.filter(({ count }) => count > 3).length;
  }
}

const api = express.Router();
api.use(function checksToken(req, res, next) {
  req.user = check(`${req.method} ${req.originalUrl} ${JSON.stringify(req.headers)}`);
  next();
});
for (let i = 0; i < 6; i++) api.use(function passesOn(req, res, next) { next(); });
api.param('id', function findsItem(req, res, next, id) {
  req.item = items.find((item) => item.id === Number(id));
  next(req.item ? undefined : new Error('no such item'));
});

api.get('/items/:id', function showsItem(req, res) {
  res.json({ ...req.item, related: related(req.item) });
});

function related(item) {
  const score = (other) => other.tags.filter((tag) => item.tags.includes(tag)).length - Math.abs(other.price - item.price) / 500;
  return items.map((other) => [score(other), other.id]).sort(([a], [b]) => b - a).slice(0, 5);
}

api.get('/report', async function makesReport(req, res) {
  const groups = await grouped();
  res.send(Object.entries(groups).map(([tag, sum]) => `${tag}: ${sum}`).join('\n'));
});

async function grouped() {
  await null;
  const groups = {};
  for (const { tags, price } of items) for (const tag of tags) groups[tag] = (groups[tag] ?? 0) + price;
  return groups;
}

api.post('/baskets', function fillsBasket(req, res) {
  const basket = new Basket(req.body.lines);
  res.status(201).json({ total: basket.total, discounted: basket.discounted(0.1) });
});

app.use('/api', api);
app.use(function tellsNobody(error, req, res, next) {
  res.status(404).json({ error: error.message });
});

const server = app.listen(0, '127.0.0.1', () => listening(server.address().port));
