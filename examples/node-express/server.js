// A webhook handler as Resmic's documentation describes it. It works for the webhook and for resmic-mailhook.
// WEBHOOK_SECRET=… PORT=3000 node server.js
const crypto = require('node:crypto');
const express = require('express');

const secret = process.env.WEBHOOK_SECRET;
if (!secret) throw new Error('WEBHOOK_SECRET is not set');
const app = express();
app.use(express.json());

const paid = new Map(); // the payments, by event; a shop keeps them in its database

app.post('/payment-webhook', (req, res) => {
  const expected = crypto.createHmac('sha256', secret).update(JSON.stringify(req.body ?? null)).digest('hex');
  const given = Buffer.from(req.get('X-Signature') ?? '');
  if (given.length !== expected.length || !crypto.timingSafeEqual(given, Buffer.from(expected))) {
    return res.status(401).json({ error: 'wrong signature' });
  }
  // An event may be delivered twice: count it once. Its id comes from the body, because the signature covers no header.
  // A real shop also compares the amount with the price of the order.
  const { status, state, blockchain, transaction_hash: hash, session_id: session, txTime } = req.body;
  const id = JSON.stringify([status, state, ...(hash ? [blockchain, hash] : [session, txTime])]);
  if (!paid.has(id)) {
    paid.set(id, req.body);
    console.log(JSON.stringify(req.body));
  }
  res.json({ received: true });
});

const server = app.listen(Number(process.env.PORT ?? 3000), '127.0.0.1', () => {
  console.log(`listening on ${server.address().port}`);
});
