"""A webhook handler that needs only Python's standard library: WEBHOOK_SECRET=… PORT=3000 python3 handler.py"""

import hashlib
import hmac
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ["WEBHOOK_SECRET"].encode()
paid = {}  # the payments, by event; a shop keeps them in its database


class Handler(BaseHTTPRequestHandler):
    timeout = 10

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 5:
            return self.answer(400)
        body = self.rfile.read(int(length))
        expected = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
        # compare_digest takes only ASCII strings, but bytes of any value; a sender can put anything into the header.
        if not hmac.compare_digest(expected.encode(), self.headers.get("X-Signature", "").encode()):
            return self.answer(401)
        event = json.loads(body)
        # An event may be delivered twice: count it once. Its id comes from the body, because the signature covers no
        # header. A real shop also compares the amount with the price of the order.
        what = ("blockchain", "transaction_hash") if event.get("transaction_hash") else ("session_id", "txTime")
        if paid.setdefault(tuple(event.get(key) for key in ("status", "state", *what)), event) is event:
            print(json.dumps(event) + "\n", end="", flush=True)  # in one piece: other threads print, too
        self.answer(200)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "3000"))), Handler)
print(f"listening on {server.server_port}", flush=True)
server.serve_forever()
