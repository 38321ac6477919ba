"""A callback that accepts everything. It appends each body to a file, and each Idempotency-Key to FILE.keys."""
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Callback(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[1], "ab") as posted, open(sys.argv[1] + ".keys", "a") as keys:
            posted.write(body + b"\n")
            keys.write(self.headers["Idempotency-Key"] + "\n")
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", 3000), Callback).serve_forever()
