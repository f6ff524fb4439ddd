'use strict';
// Keeps a CPU busy in OpenSSL's assembly code, which has its own use for the register of the frame pointer, called from JavaScript.
//
// Truth: nanoseconds of each job by the clock, without those in which it waited for a CPU, by the kernel's books.
const crypto = require('crypto');
const fs = require('fs');
const { now, serve } = require('../truth.js');

const ACTIVE_US = 2e6;
const data = Buffer.alloc(1 << 20);
const [key, iv] = [data.subarray(0, 32), data.subarray(0, 12)];
const { privateKey: rsa } = crypto.generateKeyPairSync('rsa', { modulusLength: 2048 });
const { privateKey: ec } = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });

function signRsa() { crypto.sign('sha256', iv, rsa); }
function signEc() { for (let i = 0; i < 20; i++) crypto.sign('sha256', iv, ec); }
function gcm() { crypto.createCipheriv('aes-256-gcm', key, iv).update(data); }
function chacha() { crypto.createCipheriv('chacha20-poly1305', key, iv, { authTagLength: 16 }).update(data); }
function sha1() { crypto.createHash('sha1').update(data).digest(); }
function sha256() { crypto.createHash('sha256').update(data).digest(); }
function sha512() { crypto.createHash('sha512').update(data).digest(); }
function sha3() { crypto.createHash('sha3-256').update(data).digest(); }
function md5() { crypto.createHash('md5').update(data).digest(); }
function pbkdf2() { crypto.pbkdf2Sync(key, iv, 1000, 32, 'sha512'); }

/** Called by way of V8, so that none is inlined into its caller. */
const jobs = [signRsa, signEc, gcm, chacha, sha1, sha256, sha512, sha3, md5, pbkdf2];
const spent = Object.fromEntries(jobs.map((job) => [job.name, 0]));

const schedstat = fs.openSync('/proc/thread-self/schedstat');
const bytes = Buffer.alloc(64);
/** Nanoseconds that this thread has waited for a CPU. */
const waited = () => Number(bytes.latin1Slice(0, fs.readSync(schedstat, bytes, 0, 64, 0)).split(' ')[1]);

function round() {
  // In a new order each time: a round that takes as long as some samples are apart would have them at the same places.
  for (let i = jobs.length - 1; i > 0; i--) {
    const other = Math.floor(Math.random() * (i + 1));
    [jobs[i], jobs[other]] = [jobs[other], jobs[i]];
  }
  for (const job of jobs) {
    const [begin, before] = [now(), waited()];
    Reflect.apply(job, null, []);
    spent[job.name] += now() - begin - (waited() - before);
  }
}

function run() {
  const begin = process.cpuUsage();
  const turn = () => {
    round();
    const { user, system } = process.cpuUsage(begin);
    if (user + system < ACTIVE_US) setImmediate(turn);
    else console.log('DONE');
  };
  turn();
}

serve(() => ({ spent }), run);
