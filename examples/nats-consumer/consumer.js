// Reads the payments of a JetStream stream into SQLite, and counts each of them once. For Node 18 and newer.
// npm ci
// WEBHOOK_SECRET=… STREAM=RESMIC_EVENTS SUBJECT=resmic.events NATS_URL=tls://n1.example:4222 node consumer.js
const crypto = require('node:crypto');
const { AckPolicy, jetstreamManager } = require('@nats-io/jetstream');
const { connect } = require('@nats-io/transport-node');
const Database = require('libsql'); // SQLite for Node 18 and 20; newer ones have node:sqlite

const secret = process.env.WEBHOOK_SECRET;
if (!secret) throw new Error('WEBHOOK_SECRET is not set');
const servers = (process.env.NATS_URL ?? 'nats://127.0.0.1:4222').split(',');
const stream = process.env.STREAM ?? 'RESMIC_EVENTS';
const prefix = process.env.SUBJECT ?? 'resmic.events';
const name = process.env.CONSUMER ?? 'shop';
const connection = {
  servers,
  user: process.env.NATS_USER,
  pass: process.env.NATS_PASSWORD,
  tls: servers.some((server) => server.startsWith('tls:')) ? { caFile: process.env.NATS_CA } : undefined,
  maxReconnectAttempts: -1, // the library connects again whenever the connection is lost
  reconnectTimeWait: 1000,
  timeout: 2000, // of one attempt to connect
  pingInterval: 5000,
};

// The event's id is the key of a payment. `content` is a second key, because the signature covers the body and not the
// subject. So a message with the body of one payment and the id of another changes nothing. `sequence` is the message's place
// in the stream.
const db = new Database(process.env.DATABASE ?? 'payments.db');
db.exec(`
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS payments (
  event_id TEXT PRIMARY KEY, content TEXT NOT NULL UNIQUE, sequence INTEGER NOT NULL, body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS unverified (
  subject TEXT, signature TEXT, body BLOB, sequence INTEGER, PRIMARY KEY (subject, signature, body)
);`);
const insertPayment = db.prepare('INSERT INTO payments VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING');
const insertUnverified = db.prepare('INSERT INTO unverified VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING');
const deleteVerified = db.prepare('DELETE FROM unverified WHERE (subject, signature, body) = (?, ?, ?)');

function isGenuine(signature, body) {
  const expected = crypto.createHmac('sha256', secret).update(body).digest('hex');
  const given = Buffer.from(signature);
  return given.length === expected.length && crypto.timingSafeEqual(given, Buffer.from(expected));
}

// Stores a message. When this function returns, the message is committed.
function store(subject, signature, body, sequence) {
  if (insert(subject, signature, body, sequence)) console.log(body.toString());
}

// Runs in one database transaction. Returns whether the message is a new payment.
const insert = db.transaction((subject, signature, body, sequence) => {
  if (!isGenuine(signature, body)) {
    console.error(`message ${sequence} has no valid X-Signature; see the table unverified`);
    insertUnverified.run(subject, signature, body, sequence);
    return false;
  }
  const { status, state, blockchain, transaction_hash: hash, session_id: session, txTime } = JSON.parse(body);
  const content = JSON.stringify([status, state, ...(hash ? [blockchain, hash] : [session, txTime])]);
  const { changes } = insertPayment.run(subject.split('.').pop(), content, sequence, body.toString());
  // If the payment is new, a real shop changes the order here, in the same database transaction. It also compares the amount.
  deleteVerified.run(subject, signature, body);
  return changes === 1;
});

let messages; // the messages of the last request
let isStopping = false;

// Stores the messages of the stream, and acknowledges each of them after its commit.
async function read(client) {
  const manager = await jetstreamManager(client, { timeout: 1000, checkAPI: false });
  const settings = { durable_name: name, ack_policy: AckPolicy.Explicit, filter_subject: `${prefix}.>` };
  await manager.consumers.info(stream, name).catch(() => manager.consumers.add(stream, settings));
  const consumer = await manager.jetstream().consumers.get(stream, name);
  console.error(`reading ${stream}`);
  while (!isStopping) {
    // Each request ends after a second: if the server fails, the request is lost, and the library reports no error.
    messages = await consumer.fetch({ max_messages: 100, expires: 1000 });
    for await (const message of messages) {
      const signature = message.headers?.get('X-Signature') ?? '';
      store(message.subject, signature, Buffer.from(message.data), message.seq);
      message.ack(); // If the server does not receive this, it sends the message again.
    }
  }
}

async function main() {
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.once(signal, () => {
      isStopping = true;
      if (messages) messages.stop();
      else process.exit();
    });
  }
  // Messages that came while the secret was wrong are in `unverified`. With the right secret, they become payments now.
  for (const { subject, signature, body, sequence } of db.prepare('SELECT * FROM unverified ORDER BY sequence').all()) {
    store(subject, signature, Buffer.from(body), sequence);
  }
  let client;
  while (!isStopping) {
    try {
      if (!client || client.isClosed()) client = await connect(connection);
      await read(client);
    } catch (error) {
      console.error(`cannot read ${stream}: ${error.message}; trying again`);
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
  await client.close();
}

main();
