// A site as frameworks make them: TypeScript and JSX, bundled with all that it uses into one file without a name left as it was.
//
//   node server.js
import express from 'express5';
import { renderToString } from 'react-dom/server';
import { Catalog } from './catalog';
import { HomePage, ItemPage } from './pages';
import { listening } from '../app.js';

const catalog = new Catalog();
const app = express();

app.use(function greetsVisitor(req, res, next) {
  res.locals.visitor = String(req.headers['user-agent'] ?? 'somebody');
  next();
});

app.get('/', function sendsHome(req, res) {
  res.send(renderToString(<HomePage catalog={catalog} visitor={res.locals.visitor} />));
});

app.get('/items/:id', async function sendsItem(req, res) {
  const item = catalog.find(Number(req.params.id));
  if (!item) return res.status(404).send('no such item');
  return res.send(renderToString(<ItemPage item={item} />));
});

const server = app.listen(0, '127.0.0.1', () => listening(server.address().port));
