"""What a daemon looks like from outside, for tests of those who start it: ports, readiness, signals.

Run as `python -m tests.carequorum.fake_daemon --config PATH`. It leads where the folder holds a file `leads`, and is
in that term without a leader where it holds `cut_off`; it ends at once where it holds `broken`, with 3, or `removed`,
with 5. SIGTERM ends it with 0, unless the folder holds `stubborn`.
"""

import json
import os
import signal
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from ledger.genesis import genesis_from_json


class Handler(BaseHTTPRequestHandler):
    folder: Path
    view: dict[str, object]

    def do_GET(self) -> None:
        body = json.dumps(self.view if self.path == "/v1/network" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


def main() -> None:
    path = Path(sys.argv[sys.argv.index("--config") + 1])
    config = tomllib.loads(path.read_text())
    folder = path.parent
    if (folder / "broken").exists():
        print("the disk is on fire", file=sys.stderr)
        sys.exit(3)
    if (folder / "removed").exists():
        sys.exit(5)
    if (folder / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    genesis = genesis_from_json((folder / config["node"]["genesis"]).read_text())
    leads = (folder / "leads").exists()
    Handler.view = {
        "network": genesis.network,
        "chain": genesis.chain_id().hex(),
        "node": folder.name,
        "organisation": folder.name,
        "role": "leader" if leads else "follower",
        "leader": folder.name if leads else None,
        "term": 7 if leads or (folder / "cut_off").exists() else 6,
        "barred": False,
        "amnesia": False,
        "time": 0,
        "heights": {"committed": 3, "executed": 3, "last": 3, "sealed": 2},
        "head": {"height": 3, "hash": "aa" * 32, "history_root": "bb" * 32, "state_root": "cc" * 32},
        "members": [],
        "steps": 0,
        "joint": False,
        "pending": None,
        "evidence": [],
    }
    HTTPServer(("127.0.0.1", config["provider"]["port"]), Handler).serve_forever()


if __name__ == "__main__":
    main()
