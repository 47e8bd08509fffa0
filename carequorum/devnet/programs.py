"""Other programs: found, run, their errors in one line."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from carequorum.devnet.errors import DevnetError

TIMEOUT_S = 30.0
# Not on every user's PATH.
SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")
# What a failed program said last is what it failed of.
_SAID_LINES = 3
_SAID_MAX = 300


def find(name: str) -> str | None:
    """The path of a program, None if there is none."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM]))


def run(
    command: Sequence[str],
    given: str | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """What it wrote, see `attempt`. Raises DevnetError with what it said if it fails."""
    ended = attempt(command, given, settings=settings, timeout_s=timeout_s)
    if ended.returncode:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        last = "; ".join(said[-_SAID_LINES:])[-_SAID_MAX:] or f"it ended with {ended.returncode}"
        raise DevnetError(f"{short(command)}: {last}")
    return ended.stdout


def attempt(
    command: Sequence[str],
    given: str | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """How it ended, whatever it said. `given` is its input, `settings` are added to its environment.

    Raises DevnetError if it does not start, or not end in time.
    """
    try:
        return subprocess.run(
            command,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(settings or {})},
        )
    except subprocess.TimeoutExpired:
        raise DevnetError(f"{short(command)} did not end within {timeout_s:g} s") from None
    except OSError as error:
        raise DevnetError(f"{short(command)}: {error.strerror}") from None


def short(command: Sequence[str]) -> str:
    """Which program does what, without its options and the way into its namespace."""
    words = list(command)
    if "--" in words:
        words = words[words.index("--") + 1 :]
    verbs = [word for word in words[1:] if not word.startswith("-") and "/" not in word]
    return " ".join([Path(words[0]).name, *verbs[:2]])
