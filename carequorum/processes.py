"""Processes that outlive the command that started them, signalled only while they are still themselves.

A pid alone is not enough for that: once a process has ended, the kernel may give its number to another. So
the moment of its start is kept beside the pid, and every signal goes through a pidfd that was opened first
and compared after. Linux only (/proc, pidfd; see pidfd_open(2)).
"""

import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ENDED = ("Z", "X")
_STATE, _START = 0, 19  # fields of /proc/<pid>/stat, counted after the command's closing parenthesis


@dataclass(frozen=True, slots=True)
class Process:
    """`started` is the boot's id and the start time in clock ticks: it tells a process from a later one."""

    pid: int
    started: str


@dataclass(frozen=True, slots=True)
class Ended:
    """`code` is the exit status, negative for a signal, or None where the process was not our child."""

    code: int | None


def spawn(argv: list[str], log: Path) -> Process:
    """Start `argv` in a session of its own, without input, its output appended to `log`. Raises OSError."""
    pid = os.posix_spawn(
        argv[0],
        argv,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        # A command that was told to ignore an interrupt must not hand that on to a daemon.
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )
    stat = _stat(pid)
    assert stat is not None, "a child stays in the process table until it is waited for"
    return Process(pid, _moment(stat))


def find(*words: str) -> Process | None:
    """A running process of this user's whose command line ends with `words`; the oldest, if there are several."""
    tail = "".join(f"{word}\0" for word in words).encode()
    found: list[tuple[int, int]] = []
    for place in Path("/proc").glob("[0-9]*"):
        pid = int(place.name)
        try:
            ours = place.stat().st_uid == os.geteuid() and (place / "cmdline").read_bytes().endswith(b"\0" + tail)
        except OSError:
            continue
        stat = _stat(pid) if ours else None
        if stat is not None and stat[_STATE] not in _ENDED:
            found.append((int(stat[_START]), pid))
    if not found:
        return None
    started, pid = min(found)
    return Process(pid, _moment_of(started))


def is_running(process: Process) -> bool:
    stat = _stat(process.pid)
    return stat is not None and stat[_STATE] not in _ENDED and _moment(stat) == process.started


def is_stopped(process: Process) -> bool:
    """Whether it runs, and was stopped by a signal (SIGSTOP)."""
    stat = _stat(process.pid)
    return stat is not None and stat[_STATE] == "T" and _moment(stat) == process.started


def send(process: Process, number: signal.Signals) -> bool:
    """Signal it. False if it had ended before."""
    descriptor = _open(process)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait(process: Process, timeout_s: float) -> Ended | None:
    """Wait until it has ended, and reap it if it is our child. None if it still runs after `timeout_s`."""
    descriptor = _open(process)
    if descriptor is not None:
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0, int(timeout_s * 1000))):
                return None
        finally:
            os.close(descriptor)
    return Ended(_reap(process.pid)) if descriptor is not None else Ended(None)


def _open(process: Process) -> int | None:
    """A pidfd of this very process, or None if it has ended (and was reaped)."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Opened first, compared after: what the descriptor names can no longer change.
    stat = _stat(process.pid)
    if stat is None or _moment(stat) != process.started:
        os.close(descriptor)
        return None
    return descriptor


def _reap(pid: int) -> int | None:
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if ended == pid else None


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def _moment(stat: list[str]) -> str:
    return _moment_of(int(stat[_START]))


def _moment_of(started_ticks: int) -> str:
    return f"{_BOOT_ID.read_text().strip()}:{started_ticks}"
