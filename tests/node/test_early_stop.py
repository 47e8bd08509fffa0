"""A daemon that is told to stop before it began ends as one that had run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE_S = 30.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_configuration_is_read_ends_it_with_0(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "node.toml"
    os.mkfifo(path)
    daemon = subprocess.Popen([sys.executable, "-m", "node", "--config", str(path)])
    # Opens once the daemon has opened the other end, and so is past its imports.
    with path.open("wb"):
        daemon.send_signal(number)
        assert daemon.wait(PATIENCE_S) == 0
