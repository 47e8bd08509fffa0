"""What the machine must have for a backend, and what is installed where it can be."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from carequorum.devnet import DevnetError, commands
from carequorum.devnet.programs import find
from tests.testnets import engine

# For the wires of both backends; `engine` sees to what containers need beside.
PACKAGES = ("iproute2", "iptables")
INSTALL_TIMEOUT_S = 180.0
_DEBIAN = Path("/etc/debian_version")


def unavailable(backend: str) -> str | None:
    """Why this machine is not one for networks of this backend, in a few words; None where it is.

    Missing programs are installed first, on Debian and as root. Raises DevnetError where that fails, or where the
    machine should be able to and is not.
    """
    if platform.system() != "Linux":
        return "development networks need Linux"
    if backend == "process":
        return None
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not all(find(tool) for tools in commands.PACKAGES.values() for tool in tools):
        if shutil.which("apt-get") is None or not _DEBIAN.exists():
            return f"needs {' and '.join(PACKAGES)}, and this is no Debian with apt-get"
        _install()
    lacking = commands.missing()
    if lacking is not None:
        raise DevnetError(lacking)
    return engine.unavailable() if backend == "docker" else None


def _install() -> None:
    print(f"installing {' '.join(PACKAGES)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        try:
            ended = subprocess.run(
                ["apt-get", *arguments],
                capture_output=True,
                timeout=INSTALL_TIMEOUT_S,
                check=False,
                env=environment,
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            raise DevnetError(f"apt-get {arguments[0]}: {error}") from None
        if ended.returncode != 0:
            said = ended.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise DevnetError(f"apt-get {arguments[0]} failed: {said[-1][:200]}")
