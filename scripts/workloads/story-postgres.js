'use strict';
// The third story's victim: a server whose requests each read one row of PostgreSQL's table `manta`, through a pool of ten connections.
//
//   PGPORT=5432 node story-postgres.js [--healthy]
//
// With --healthy one request in ten counts in a row that all of them want: short waits for a lock, as any server has. Its port follows
// READY; `truth` on standard input is answered with one line of JSON, and the end of standard input ends it.
const { createRequire } = require('module');
const http = require('http');
const path = require('path');

const modules = process.env.STORY_MODULES ?? path.join(__dirname, '../../.cache/workloads');
const { Pool } = createRequire(path.join(modules, '/'))('pg');
const healthy = process.argv.includes('--healthy');

const pool = new Pool({ host: '127.0.0.1', user: 'postgres', database: 'postgres', max: 10 });
pool.on('error', () => {});
let requests = 0;
let answered = 0;

async function getOrder(key) {
  const { rows } = await pool.query('select value from manta where _key = $1', [key]);
  return rows[0].value;
}

async function countVisit() {
  await pool.query('update visits set n = n + 1 where id = 1');
}

const server = http.createServer(async (request, response) => {
  requests++;
  try {
    if (healthy && requests % 10 === 0) await countVisit();
    response.end(await getOrder(`k${1 + requests % 1000}`));
  } catch (error) {
    response.statusCode = 500;
    response.end(String(error));
  }
  answered++;
});
server.listen(0, '127.0.0.1', () => process.stdout.write(`READY ${server.address().port}\n`));
process.stdin.on('data', (data) => {
  if (!String(data).includes('truth')) return;
  const truth = { requests, awaiting: requests - answered, connections: pool.totalCount, without: pool.waitingCount };
  process.stdout.write(`TRUTH ${JSON.stringify(truth)}\n`);
});
process.stdin.on('end', () => process.exit(0));
