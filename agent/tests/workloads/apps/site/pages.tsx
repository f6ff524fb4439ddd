// The pages, rendered on the server.
import { createContext, useContext, useMemo } from 'react';
import type { ReactNode } from 'react';
import { priceText } from './catalog';
import type { Catalog, Item } from './catalog';

const Visitor = createContext('nobody');

function Layout({ title, children }: { title: string; children: ReactNode }) {
  const visitor = useContext(Visitor);
  return (
    <html lang="en">
      <head><title>{title}</title></head>
      <body>
        <header>Hello, {visitor}</header>
        <main>{children}</main>
      </body>
    </html>
  );
}

function ItemCard({ item }: { item: Item }) {
  return (
    <li className={item.cents > 5_000 ? 'dear' : 'cheap'} data-id={item.id}>
      <a href={`/items/${item.id}`}>{item.title}</a>
      <span>{priceText(item.cents)}</span>
    </li>
  );
}

export function HomePage({ catalog, visitor }: { catalog: Catalog; visitor: string }) {
  const items = useMemo(() => catalog.cheapest(60), [catalog]);
  return (
    <Visitor.Provider value={visitor}>
      <Layout title="All items">
        <ul>{items.map((item) => <ItemCard key={item.id} item={item} />)}</ul>
      </Layout>
    </Visitor.Provider>
  );
}

export function ItemPage({ item }: { item: Item }) {
  return (
    <Layout title={item.title}>
      <h1>{item.title}</h1>
      <p>{priceText(item.cents)}</p>
    </Layout>
  );
}
