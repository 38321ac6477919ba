// A shop's whole checkout, without dependencies (Node 18 or newer). Settings come from the environment:
//   RESMIC_API_KEY RESMIC_USER_ID WALLET   from Resmic, and the wallet that receives the money
//   MAILBOX ADDRESS_KEY WEBHOOK_SECRET     as in config.toml: [sessions] address, and the secret of [[forward]]
// Start it with `PORT=3000 node checkout.js`, and set url = "http://127.0.0.1:3000/payment-webhook" in [[forward]].
const { execFileSync } = require('node:child_process');
const { createHmac, timingSafeEqual } = require('node:crypto');
const { createServer } = require('node:http');

const { RESMIC_API_KEY, RESMIC_USER_ID, WALLET, MAILBOX, ADDRESS_KEY, WEBHOOK_SECRET } = process.env;
const RESMIC_URL = process.env.RESMIC_URL ?? 'https://api.resmic.com';
const SHOP_URL = process.env.SHOP_URL ?? 'https://shop.example';

// A shop keeps these in its database. The amounts are US dollars.
const orders = new Map([['1001', { amount: '20.50', state: 'open', tries: 0 }]]);
const sessions = new Map(); // session id -> order

// docs/sessions.md, "A signed address for each order"
const base32 = (bytes) => [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('')
  .replace(/.{1,5}/g, (five) => 'abcdefghijklmnopqrstuvwxyz234567'[parseInt(five.padEnd(5, '0'), 2)]);

function addressFor(reference, mailbox, key) {
  const mac = createHmac('sha256', key).update('resmic-mailhook address\n' + reference).digest().subarray(0, 10);
  const name = /^[a-z0-9-][a-z0-9_-]*$/.test(reference) ? reference : '_' + base32(Buffer.from(reference));
  if (mailbox.indexOf('@') + name.length > 46) throw new RangeError('order reference too long');
  return mailbox.replace('@', `+${name}.${base32(mac)}@`);
}

// Creates a session at Resmic and registers it. Returns the URL of the payment page.
async function checkout(id) {
  const order = orders.get(id);
  const reference = `order-${id}-${++order.tries}`; // a separate reference for each session
  const response = await fetch(`${RESMIC_URL}/api/v1/makepayment`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'x-api-key': RESMIC_API_KEY, 'x-user-id': RESMIC_USER_ID },
    body: JSON.stringify({
      amount: Number(order.amount),
      blockchain: ['Polygon'],
      token: ['USDC'],
      title: `Order ${id}`,
      description: `Order ${id}`,
      wallet_address: WALLET,
      blockchain_confirmation: 2,
      redirect_url: `${SHOP_URL}/order/${id}`,
      cancel_url: `${SHOP_URL}/order/${id}`,
      webhook_url: addressFor(reference, MAILBOX, ADDRESS_KEY),
    }),
  });
  const answer = await response.json();
  if (answer.success !== true) throw new Error(`Resmic: ${answer.message}`);
  const { session_id: session, payment_url: url } = answer.data;
  // Register the session before the customer can pay. If this fails, there is no checkout.
  execFileSync('resmic-mailhook', ['session', 'add', session, '--order', reference, '--amount', order.amount]);
  sessions.set(session, id);
  return url;
}

// Receives an event. The same event may arrive twice, so this function only sets a state.
function receive(body, signature) {
  const expected = Buffer.from(createHmac('sha256', WEBHOOK_SECRET).update(body).digest('hex'));
  const given = Buffer.from(signature ?? '');
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) return 401;
  const event = JSON.parse(body);
  const order = orders.get(sessions.get(event.session_id));
  if (!order) return 404; // the daemon delivers the event again later
  if (event.status === true && Number(event.amount) === Number(order.amount)) order.state = 'paid';
  else if (event.status === true) order.state = 'review';
  else if (event.state !== 'pending' && order.state === 'open') order.state = 'failed';
  return 200;
}

async function answer(request) {
  const [, page, id] = request.url.split('/');
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  if (request.method === 'POST' && page === 'payment-webhook') {
    return [receive(Buffer.concat(chunks), request.headers['x-signature'])];
  }
  if (!orders.has(id)) return [404];
  if (request.method === 'POST' && page === 'checkout') return [303, { Location: await checkout(id) }];
  return [200, {}, orders.get(id).state];
}

const server = createServer((request, response) => {
  answer(request).catch((error) => (console.error(error.message), [502]))
    .then(([status, headers = {}, text = '']) => response.writeHead(status, headers).end(text));
});
server.listen(Number(process.env.PORT ?? 3000), '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
