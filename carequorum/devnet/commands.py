"""The system's programs that make, enter and break network namespaces: found, run, and their errors in one line."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from carequorum.devnet.errors import DevnetError

# By the Debian package that has them.
PACKAGES = {
    "iproute2": ("ip", "tc"),
    "iptables": ("iptables-save", "iptables-restore"),
    "util-linux": ("nsenter", "unshare"),
}
TIMEOUT_S = 30.0

# Not on every user's PATH.
_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def missing() -> str | None:
    """What this machine or this user lacks for namespaces and faults on their wires, in one line."""
    if os.geteuid() != 0:
        return "network namespaces and the faults on their wires need root"
    lacking = {
        package: lost for package, tools in PACKAGES.items() if (lost := [tool for tool in tools if not _find(tool)])
    }
    if lacking:
        tools = ", ".join(tool for lost in lacking.values() for tool in lost)
        return f"missing: {tools} (Debian: apt-get install {' '.join(lacking)})"
    # A kernel or a container may still not have it.
    tried = attempt([tool("unshare"), "--net", "--", tool("iptables-save"), "-t", "mangle"])
    said = " ".join(tried.stderr.split())[:300]
    return f"no network namespace with iptables can be had: {said}" if tried.returncode else None


@cache
def need() -> None:
    """Raises DevnetError with what is `missing`."""
    lack = missing()
    if lack is not None:
        raise DevnetError(lack)


def inside(namespace: Path, command: Sequence[str]) -> list[str]:
    """`command`, a program of this machine, in a network namespace. It keeps the pid that it is started with."""
    return [tool("nsenter"), f"--net={namespace}", "--", *command]


def run(command: Sequence[str], given: str | None = None) -> str:
    """What it wrote. Raises DevnetError with what it said if it fails."""
    ended = attempt(command, given)
    if ended.returncode:
        said = "; ".join(line for line in ended.stderr.splitlines() if line) or f"it ended with {ended.returncode}"
        raise DevnetError(f"{_short(command)}: {said[:300]}")
    return ended.stdout


def attempt(command: Sequence[str], given: str | None = None) -> subprocess.CompletedProcess[str]:
    """How it ended, whatever it said. Raises DevnetError if it does not end."""
    try:
        return subprocess.run(
            command,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise DevnetError(f"{_short(command)} did not end within {TIMEOUT_S:g} s") from None


def tool(name: str) -> str:
    """The path of one of PACKAGES. Raises DevnetError."""
    path = _find(name)
    if path is None:
        need()
        raise DevnetError(f"{name} is missing")
    return path


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM]))


def _short(command: Sequence[str]) -> str:
    """The program that fails, without the way into its namespace."""
    words = list(command)
    if "--" in words:
        words = words[words.index("--") + 1 :]
    return " ".join([Path(words[0]).name, *words[1:6]])
