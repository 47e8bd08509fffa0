"""The system's programs that make, enter and break network namespaces."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from carequorum.devnet.errors import DevnetError
from carequorum.devnet.programs import attempt, find

# By the Debian package that has them.
PACKAGES = {
    "iproute2": ("ip", "tc"),
    "iptables": ("iptables-save", "iptables-restore"),
    "util-linux": ("nsenter", "unshare"),
}


def missing() -> str | None:
    """What this machine or this user lacks for namespaces and faults on their wires, in one line."""
    if os.geteuid() != 0:
        return "network namespaces and the faults on their wires need root"
    lacking = {
        package: lost for package, tools in PACKAGES.items() if (lost := [tool for tool in tools if not find(tool)])
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


def tool(name: str) -> str:
    """The path of one of PACKAGES. Raises DevnetError."""
    path = find(name)
    if path is None:
        need()
        raise DevnetError(f"{name} is missing")
    return path
