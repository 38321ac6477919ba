"""A shop's whole checkout, with Python's standard library only. Settings come from the environment:
  RESMIC_API_KEY RESMIC_USER_ID WALLET   from Resmic, and the wallet that receives the money
  MAILBOX ADDRESS_KEY WEBHOOK_SECRET     as in config.toml: [sessions] address, and the secret of [[forward]]
Start it with `PORT=3000 python3 checkout.py`, and set url = "http://127.0.0.1:3000/payment-webhook" in [[forward]].
"""

import base64
import hashlib
import hmac
import json
import os
import re
import subprocess
import urllib.request
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENV = os.environ
RESMIC_URL = ENV.get("RESMIC_URL", "https://api.resmic.com")
SHOP_URL = ENV.get("SHOP_URL", "https://shop.example")

# A shop keeps these in its database. The amounts are US dollars.
orders = {"1001": {"amount": "20.50", "state": "open", "tries": 0}}
sessions = {}  # session id -> order


# docs/sessions.md, "A signed address for each order"
def base32(data):
    return base64.b32encode(data).decode().rstrip("=").lower()


def address_for(reference, mailbox, key):
    mac = hmac.digest(key.encode(), b"resmic-mailhook address\n" + reference.encode(), "sha256")[:10]
    name = reference if re.fullmatch("[a-z0-9-][a-z0-9_-]*", reference) else "_" + base32(reference.encode())
    if mailbox.index("@") + len(name) > 46:
        raise ValueError("order reference too long")
    return mailbox.replace("@", f"+{name}.{base32(mac)}@")


def checkout(order_id):
    """Creates a session at Resmic and registers it. Returns the URL of the payment page."""
    order = orders[order_id]
    order["tries"] += 1
    reference = f"order-{order_id}-{order['tries']}"  # a separate reference for each session
    body = {
        "amount": float(order["amount"]),
        "blockchain": ["Polygon"],
        "token": ["USDC"],
        "title": f"Order {order_id}",
        "description": f"Order {order_id}",
        "wallet_address": ENV["WALLET"],
        "blockchain_confirmation": 2,
        "redirect_url": f"{SHOP_URL}/order/{order_id}",
        "cancel_url": f"{SHOP_URL}/order/{order_id}",
        "webhook_url": address_for(reference, ENV["MAILBOX"], ENV["ADDRESS_KEY"]),
    }
    headers = {"Content-Type": "application/json", "x-api-key": ENV["RESMIC_API_KEY"], "x-user-id": ENV["RESMIC_USER_ID"]}
    request = urllib.request.Request(f"{RESMIC_URL}/api/v1/makepayment", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        answer = json.load(response)
    if answer["success"] is not True:
        raise RuntimeError(f"Resmic: {answer['message']}")
    session = answer["data"]["session_id"]
    # Register the session before the customer can pay. If this fails, there is no checkout.
    command = ["resmic-mailhook", "session", "add", session, "--order", reference, "--amount", order["amount"]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    sessions[session] = order_id
    return answer["data"]["payment_url"]


def receive(body, signature):
    """Receives an event. The same event may arrive twice, so this function only sets a state."""
    expected = hmac.new(ENV["WEBHOOK_SECRET"].encode(), body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        return 401
    event = json.loads(body)
    order = orders.get(sessions.get(event["session_id"]))
    if order is None:
        return 404  # the daemon delivers the event again later
    if event["status"] is True:
        order["state"] = "paid" if Decimal(event["amount"]) == Decimal(order["amount"]) else "review"
    elif event.get("state") != "pending" and order["state"] == "open":
        order["state"] = "failed"
    return 200


class Handler(BaseHTTPRequestHandler):
    timeout = 30

    def do_GET(self):
        order = orders.get(self.path.rsplit("/", 1)[-1])
        self.answer(200, order["state"]) if order else self.answer(404)

    def do_POST(self):
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(int(length)) if length.isdecimal() and len(length) < 6 else b""
        page, _, order_id = self.path.strip("/").partition("/")
        if page == "payment-webhook":
            self.answer(receive(body, self.headers.get("X-Signature", "")))
        elif page == "checkout" and order_id in orders:
            try:
                self.answer(303, location=checkout(order_id))
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                print(error, flush=True)
                self.answer(502)
        else:
            self.answer(404)

    def answer(self, status, text="", location=None):
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(ENV.get("PORT", "3000"))), Handler)
    print(f"listening on {server.server_port}", flush=True)
    server.serve_forever()
