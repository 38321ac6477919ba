"""A webhook handler with nothing but Python's own library: WEBHOOK_SECRET=… PORT=3000 python3 handler.py"""

import hashlib
import hmac
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ["WEBHOOK_SECRET"].encode()
paid = {}  # by event; a shop keeps this in its database


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        expected = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, self.headers.get("X-Signature", "")):
            return self.answer(401)
        event = json.loads(body)
        # The same event may come again: count it once. And compare the amount with what the order costs.
        if paid.setdefault(self.headers.get("Idempotency-Key"), event) is event:
            print(json.dumps(event), flush=True)
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
