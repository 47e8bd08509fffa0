"""What the machine must have for a backend, and what is installed where it can be."""

import os
import shutil
import subprocess
from pathlib import Path

from carequorum.devnet import commands

# By backend: the Debian packages whose programs it needs.
PACKAGES = {"process": (), "netns": ("iproute2", "iptables"), "docker": ("iproute2", "iptables")}
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
        lacking = _install(PACKAGES[backend]) or commands.missing()
    return lacking


def _install(packages: tuple[str, ...]) -> str | None:
    """Why they could not be installed, None if they are."""
    apt = shutil.which("apt-get")
    if apt is None or not _DEBIAN.exists():
        return f"needs {' and '.join(packages)}, and this is no Debian with apt-get"
    print(f"installing {' '.join(packages)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
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
