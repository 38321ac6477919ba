"""Opens contrib/datasette in Datasette with a real browser, and checks the payments, counts, queries and the chart on the
pages. `make test-datasette` runs it. Its argument is the path of the resmic-mailhook program.
"""
import collections
import html.parser
import http.client
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """
[[account]]
name = "shop"
host = "127.0.0.1"
tls = "none"
user = "payments@shop.example"
password = { env = "NOT_NEEDED" }
[trust]
accept = ["none"]
"""
# One mail is created for each of these days, because the chart needs several days. The sample mails are all from one day.
DAYS = ("Thu, 06 Mar 2025", "Fri, 07 Mar 2025", "Mon, 10 Mar 2025")
MAIL = """From: Resmic <no-reply@resmic.com>
To: payments@shop.example
Subject: Payment received
Date: {day} 03:36:41 +0000

Amount: $20
Blockchain: BASE
Token: USDC
Transaction Hash: 0x{n:064x}
"""
SESSION = "591abe63-aa61-411d-a419-0b546729bbd0"


def fill(program, folder):
    """Creates a database from the sample mails, and a backup of it for Datasette. Returns the events."""
    (folder / "config.toml").write_text(CONFIG)

    def run(*arguments):
        command = [program, "--config", folder / "config.toml", *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout

    (folder / "mails").mkdir()
    for n, day in enumerate(DAYS):
        (folder / f"mails/{n}.eml").write_text(MAIL.format(day=day, n=n + 1))
    run("import", folder / "mails", ROOT / "sample-mails/published", ROOT / "sample-mails/doubtful")
    events = [json.loads(line) for line in run("events", "--json").splitlines()]
    run("session", "add", SESSION, "--order", "A-1001")
    run("session", "assign", events[0]["event_id"], SESSION)
    (folder / "copy").mkdir()
    run("backup", folder / "copy/mailhook.db")
    return events


class Server:
    """Datasette on a free port, as a context manager: waits for the first response on entry, and ends the process on exit."""

    def __init__(self, database):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        metadata = ROOT / "contrib/datasette/metadata.json"
        program = pathlib.Path(sys.executable).parent / "datasette"
        arguments = [program, database, "-m", metadata, "-h", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        until = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/-/versions.json")
                assert connection.getresponse().status == 200
                return self
            except OSError:
                assert self.process.poll() is None, "datasette has ended"
                assert time.monotonic() < until, "datasette does not answer"
                time.sleep(0.05)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)

    def url(self, path):
        return urllib.parse.urljoin(f"http://127.0.0.1:{self.port}/", path)


FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --virtual-time-budget=10000 --dump-dom").split()


class Page(html.parser.HTMLParser):
    """The DOM of a page in a browser after its scripts have run."""

    def __init__(self, url):
        super().__init__()
        self.tags, self.links, self.cells, self.facets = [], {}, [], {}
        self.cell = self.link = self.facet = None
        browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert browser, "no chromium here: apt-get install chromium"
        with tempfile.TemporaryDirectory() as profile:
            command = [browser, *FLAGS, f"--user-data-dir={profile}", url]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, text=True)
        assert done.returncode == 0, done.stderr
        self.text = done.stdout
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "td":
            column = next((name for name in attributes.get("class", "").split() if name.startswith("col-")), "")
            self.cell = [column.removeprefix("col-"), ""]
        elif tag == "a":
            self.link = [attributes.get("href"), ""]
        elif "data-column" in attributes and "facet-info" in attributes.get("class", ""):
            self.facet = attributes["data-column"]
            self.facets[self.facet] = ""
        elif tag == "table":
            self.facet = None

    def handle_data(self, data):
        for of in (self.cell, self.link):
            if of:
                of[1] += data
        if self.facet:
            self.facets[self.facet] += " " + data.strip()

    def handle_endtag(self, tag):
        if tag == "td" and self.cell:
            self.cells.append((self.cell[0], self.cell[1].strip()))
            self.cell = None
        elif tag == "a" and self.link:
            self.links[self.link[1].strip()] = self.link[0]
            self.link = None

    def column(self, name):
        return [text for column, text in self.cells if column == name]


def payments(server, events):
    page = Page(server.url("/mailhook/payments?_size=max"))
    for name in ("event_id", "amount", "transaction_hash"):
        wanted = sorted(event[name] for event in events)
        assert sorted(page.column(name)) == wanted, (name, page.column(name), wanted)
    counted = Page(server.url("/mailhook/counts?_size=max"))
    assert "name" in counted.facets, counted.facets
    rows = list(zip(counted.column("name"), counted.column("key"), counted.column("n")))
    for status, count in collections.Counter(event["status"] for event in events).items():
        assert ("events", status, str(count)) in rows, (status, count, rows)
    print(f"{len(events)} payments, {len(rows)} counts")


def questions(server, events):
    described = json.loads((ROOT / "contrib/datasette/metadata.json").read_text())["databases"]["mailhook"]["queries"]
    page = Page(server.url("/mailhook"))
    for query in described.values():
        assert query["title"] in page.links, (query["title"], page.links)
    order = Page(server.url("/mailhook/order?order_ref=A-1001"))
    assert order.column("event_id") == [events[0]["event_id"]], order.cells
    quarantine = Page(server.url(page.links[described["quarantine"]["title"]]))
    assert len(quarantine.column("reason")) > 5, quarantine.cells
    print(f"{len(described)} questions; the order's payment, {len(quarantine.column('reason'))} mails in quarantine")
    return page.links[described["paid_by_day"]["title"]]


def chart(server, link):
    page = Page(server.url(link))
    days = len(set(page.column("day")))
    canvas = [attributes for tag, attributes in page.tags if tag == "canvas" and attributes.get("class") == "marks"]
    # Vega sets the width by the number of days. Without data the chart would be empty or missing.
    assert days > len(DAYS) and len(canvas) == 1, page.text
    assert int(canvas[0]["width"]) > 20 * days and int(canvas[0]["height"]) > 100, canvas
    chosen = dict(urllib.parse.parse_qsl(link.split("#")[1]))
    for axis in ("g.x_column", "g.y_column", "g.color_column"):
        assert page.column(chosen[axis]), axis
    print(f"a chart of {days} days, {canvas[0]['width']} x {canvas[0]['height']}")


def main(program):
    with tempfile.TemporaryDirectory(prefix="datasette") as folder:
        folder = pathlib.Path(folder)
        events = fill(pathlib.Path(program).resolve(), folder)
        assert len(events) > 10, events
        with Server(folder / "copy/mailhook.db") as server:
            payments(server, events)
            chart(server, questions(server, events))


main(*sys.argv[1:])
