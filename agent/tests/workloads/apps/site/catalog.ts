// What the site sells.

export interface Item {
  readonly id: number;
  readonly title: string;
  readonly cents: number;
}

const COUNT = 120;

export class Catalog {
  private readonly items: Item[];

  constructor() {
    this.items = Array.from({ length: COUNT }, (_, id) => ({ id, title: `Item ${id}`, cents: (id * 3_701) % 10_000 }));
  }

  cheapest(count: number): Item[] {
    const byPrice = (a: Item, b: Item): number => a.cents - b.cents || a.id - b.id;
    return [...this.items].sort(byPrice).slice(0, count);
  }

  find(id: number): Item | undefined {
    return this.items.find((item) => item.id === id);
  }
}

/** `12.30 EUR` */
export function priceText(cents: number): string {
  const [whole, rest] = [Math.trunc(cents / 100), cents % 100];
  return `${whole}.${String(rest).padStart(2, '0')} EUR`;
}
