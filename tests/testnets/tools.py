"""What the machine must have for a backend, and what is installed where it can be."""

import os
import shutil
import subprocess
from pathlib import Path

from carequorum.devnet import commands
from tests.testnets import engine

# For the wires of both backends; `engine` sees to what containers need beside.
PACKAGES = ("iproute2", "iptables")
INSTALL_TIMEOUT_S = 180.0
_DEBIAN = Path("/etc/debian_version")


def unavailable(backend: str) -> str | None:
    """Why this machine cannot run networks of this backend, in a few words; None where it can.

    Missing programs are installed first, on Debian and as root.
    """
    if backend == "process":
        return None
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = commands.missing()
    if lacking is not None:
        lacking = _install() or commands.missing()
    if lacking is None and backend == "docker":
        lacking = engine.unavailable()
    return lacking


def _install() -> str | None:
    """Why they could not be installed, None if they are."""
    apt = shutil.which("apt-get")
    if apt is None or not _DEBIAN.exists():
        return f"needs {' and '.join(PACKAGES)}, and this is no Debian with apt-get"
    print(f"installing {' '.join(PACKAGES)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        try:
            ended = subprocess.run(
                [apt, *arguments], capture_output=True, timeout=INSTALL_TIMEOUT_S, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            return f"apt-get {arguments[0]} did not end within {INSTALL_TIMEOUT_S:g} s"
        if ended.returncode != 0:
            said = ended.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            return f"apt-get {arguments[0]} failed: {said[-1][:200]}"
    return None
