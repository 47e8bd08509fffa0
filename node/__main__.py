"""`python -m node --config PATH`: one node of the network, in the foreground."""

import argparse
import sys
from pathlib import Path

from node.daemon import main

parser = argparse.ArgumentParser(prog="node", description="Run one CareQuorum node in the foreground.")
parser.add_argument("--config", type=Path, required=True, help="the node's TOML file")
sys.exit(main(parser.parse_args().config))
