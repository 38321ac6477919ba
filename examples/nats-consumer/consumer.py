"""Reads the payments of a JetStream stream into SQLite, and counts each of them once.

python3 -m venv venv && venv/bin/pip install -r requirements.txt
WEBHOOK_SECRET=… STREAM=RESMIC_EVENTS SUBJECT=resmic.events NATS_URL=tls://n1.example:4222 venv/bin/python consumer.py
"""

import asyncio
import hashlib
import hmac
import json
import os
import signal
import sqlite3
import ssl
import sys

import nats
from nats.js.api import AckPolicy, ConsumerConfig

SECRET = os.environ["WEBHOOK_SECRET"].encode()
SERVERS = os.environ.get("NATS_URL", "nats://127.0.0.1:4222").split(",")
STREAM = os.environ.get("STREAM", "RESMIC_EVENTS")
SUBJECT = os.environ.get("SUBJECT", "resmic.events")
CONSUMER = os.environ.get("CONSUMER", "shop")

# The event's id is the key of a payment. `content` is a second key, because the signature covers the body and not the
# subject. So a message with the body of one payment and the id of another changes nothing. `sequence` is the message's place
# in the stream.
TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS payments (
  event_id TEXT PRIMARY KEY, content TEXT NOT NULL UNIQUE, sequence INTEGER NOT NULL, body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS unverified (
  subject TEXT, signature TEXT, body BLOB, sequence INTEGER, PRIMARY KEY (subject, signature, body)
);
"""


def talk(text):
    print(text, file=sys.stderr, flush=True)


def store(db, subject, signature, body, sequence):
    """Stores a message. When this function returns, the message is committed."""
    expected = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    # compare_digest takes only ASCII strings, but bytes of any value; a publisher can put anything into the header.
    is_genuine = hmac.compare_digest(expected.encode(), signature.encode())
    message = (subject, signature, body)
    with db:  # one database transaction
        if not is_genuine:
            talk(f"message {sequence} has no valid X-Signature; see the table unverified")
            db.execute("INSERT INTO unverified VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (*message, sequence))
            return
        event = json.loads(body)
        what = ("blockchain", "transaction_hash") if event.get("transaction_hash") else ("session_id", "txTime")
        content = json.dumps([event.get(key) for key in ("status", "state", *what)])
        row = (subject.rpartition(".")[2], content, sequence, body.decode())
        is_new = db.execute("INSERT INTO payments VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount == 1
        # If the payment is new, a real shop changes the order here, in the same database transaction. It also
        # compares the amount.
        db.execute("DELETE FROM unverified WHERE (subject, signature, body) = (?, ?, ?)", message)
    if is_new:
        print(body.decode(), flush=True)


async def read(client, db):
    """Stores the messages of the stream, and acknowledges each of them after its commit."""
    subscription = await client.jetstream(timeout=1).pull_subscribe(
        f"{SUBJECT}.>", durable=CONSUMER, stream=STREAM, config=ConsumerConfig(ack_policy=AckPolicy.EXPLICIT)
    )
    talk(f"reading {STREAM}")
    try:
        while True:
            try:
                # Each request ends after a second: if the server fails, the request is lost, and the library reports no
                # error.
                messages = await subscription.fetch(100, timeout=1)
            except asyncio.TimeoutError:
                # Either no message is new, or the server has lost the consumer. This call fails if the consumer is lost.
                await subscription.consumer_info()
                continue
            for message in messages:
                signature = (message.headers or {}).get("X-Signature", "")
                store(db, message.subject, signature, message.data, message.metadata.sequence.stream)
                await message.ack()  # If the server does not receive this, it sends the message again.
    finally:
        await subscription.unsubscribe()


async def connect():
    """Connects. The library connects again whenever the connection is lost."""
    client = nats.NATS()
    is_tls = any(server.startswith("tls:") for server in SERVERS)

    def password():
        # The library would also send the password to a server without TLS.
        if is_tls and not client._server_info.get("tls_required"):
            raise nats.errors.Error("the server does not offer TLS")
        return os.environ["NATS_PASSWORD"]

    async def report(error):
        talk(f"NATS: {error}")

    await client.connect(
        SERVERS,
        user=os.environ.get("NATS_USER"),
        password=password,
        tls=ssl.create_default_context(cafile=os.environ.get("NATS_CA")),
        error_cb=report,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        ping_interval=5,
    )
    return client


async def keep_reading(db):
    client = None
    while True:
        try:
            if client is None or client.is_closed:
                client = await connect()
            await read(client, db)
        except nats.errors.Error as error:
            talk(f"cannot read {STREAM}: {error}; trying again")
            await asyncio.sleep(0.5)


async def main():
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    db = sqlite3.connect(os.environ.get("DATABASE", "payments.db"))
    db.executescript(TABLES)
    # Messages that came while the secret was wrong are in `unverified`. With the right secret, they become payments now.
    for message in db.execute("SELECT * FROM unverified ORDER BY sequence").fetchall():
        store(db, *message)

    reading = asyncio.create_task(keep_reading(db))
    await asyncio.wait({reading, asyncio.create_task(stopping.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.is_set():
        await reading  # The task has failed, for example because the disk is full.
    while not reading.done():
        reading.cancel()  # The library can swallow a cancellation, so this is repeated until the task ends.
        await asyncio.wait({reading}, timeout=0.1)


asyncio.run(main())
