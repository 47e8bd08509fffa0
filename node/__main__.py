"""`python -m node --config PATH`: one node of the network, in the foreground."""

import os
import signal

# Before the slow imports: until the daemon takes these signals itself there is nothing to stop in order.
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: os._exit(0))

import argparse  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from node.daemon import main  # noqa: E402

parser = argparse.ArgumentParser(prog="node", description="Run one CareQuorum node in the foreground.")
parser.add_argument("--config", type=Path, required=True, help="the node's TOML file")
sys.exit(main(parser.parse_args().config))
