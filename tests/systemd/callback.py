"""A callback that accepts everything and appends each body to a file."""
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Callback(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[1], "ab") as posted:
            posted.write(body + b"\n")
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", 3000), Callback).serve_forever()
