"""One node's part of the faults, inside its network namespace: whatever was there before, then only that is.

    cuts          packets are dropped on the receiver's side, by their source address: connections are cut, too
    netem         the kernel delays and loses what the node sends (tc-netem(8)), at every interface but loopback
    queue         a kernel without netem: iptables loses, and `delayer` delays, what the node receives

The kernel decides between the last two, see `mechanism`; round trips are the same with both. The queue is on the
receiving side because on the sending one it would not be a wire: the kernel counts a packet that waits there against
its socket and soon sends no more of them (TCP small queues), and who sends a packet that is dropped there gets an
error.

All rules are in one chain of our own, and replaced at once by one iptables-restore. Other rules stay as they are, but
those after ours in the same table's INPUT (mangle) do not see packets that are delayed. IPv4 only, as these networks
are. Loopback is left alone.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from carequorum.devnet.commands import inside, need, tool
from carequorum.devnet.delayer import HELD_MAX
from carequorum.devnet.errors import DevnetError
from carequorum.devnet.faults import Wire
from carequorum.devnet.files import write_private
from carequorum.devnet.programs import attempt, run
from carequorum.processes import Process, is_running, send, spawn, wait

TABLE, HOOK, CHAIN = "mangle", "INPUT", "CAREQUORUM-WIRE"
QUEUE = 7400
# The state file of a node, in its folder.
STATE = "wire.json"
# Of the qdisc: how ours is told from another's.
HANDLE = "cc:"
DELAYER = Path(__file__).with_name("delayer.py")
START_TIMEOUT_S = 10.0
END_TIMEOUT_S = 5.0

_JUMP = f"{HOOK} -j {CHAIN}"
_POLL_S = 0.01

Mechanism = Literal["netem", "queue"]


class _Delayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The delayer of a node, as its state file says."""

    process: Process
    delay_ms: int
    jitter_ms: int


def apply(namespace: Path, address: str, wire: Wire, state: Path) -> None:
    """Make the wire of a network namespace as `wire` says, and nothing else of what an earlier call made of it.

    `namespace` is a path like /run/netns/NAME or /proc/PID/ns/net; it must be the one where `address`, the node's for
    its peers, is. `state` is a file of this node's own, which says which delayer runs; its log is beside it. Raises
    DevnetError.
    """
    need()
    with _held(namespace, address) as held:
        queued = wire.delay_ms > 0 and mechanism() == "queue"
        if queued:
            _start_delayer(held, wire, state)
        _set_rules(held, rules(wire, mechanism()))
        if not queued:
            # Only now: as long as a rule names the queue, somebody serves it.
            _end_delayer(state)
        if mechanism() == "netem":
            _shape(held, wire)


def forget(state: Path) -> None:
    """End the delayer of a node whose namespace is gone, or goes with everything in it. Raises DevnetError."""
    _end_delayer(state)


@cache
def mechanism() -> Mechanism:
    """How delays and losses are made on this kernel. Raises DevnetError."""
    need()
    # Tried rather than looked up (it may be built in, or loaded when it is asked for), where nothing can be broken.
    command = [tool("unshare"), "--net", "--", tool("tc"), "qdisc", "add", "dev", "lo", "root", "netem", "limit", "1"]
    ended = attempt(command)
    if ended.returncode == 0:
        return "netem"
    said = ended.stderr.strip()
    # With and without the kernel's own words.
    if "qdisc kind is unknown" in said or "No such file or directory" in said:
        return "queue"
    raise DevnetError(f"tc qdisc add netem: {said[-300:] or ended.returncode}")


def rules(wire: Wire, how: Mechanism) -> list[str]:
    """What the chain says, in the words of iptables-restore."""
    chain = [f"-s {address}/32 -j DROP" for address in wire.dropped]
    if how == "queue" and wire.loss_percent > 0:
        chain.append(f"-m statistic --mode random --probability {wire.loss_percent / 100:.6f} -j DROP")
    if how == "queue" and wire.delay_ms > 0:
        chain.append(f"-j NFQUEUE --queue-num {QUEUE} --queue-bypass")
    return [f"-A {CHAIN} {rule}" for rule in ["-i lo -j RETURN", *chain]] if chain else []


def netem(device: str, wire: Wire) -> list[str]:
    """What tc is told for an interface whose wire delays or loses."""
    words = ["qdisc", "replace", "dev", device, "root", "handle", HANDLE, "netem", "limit", str(HELD_MAX)]
    if wire.delay_ms > 0:
        words += ["delay", f"{wire.delay_ms}ms"]
        words += [f"{wire.jitter_ms}ms"] if wire.jitter_ms > 0 else []
    if wire.loss_percent > 0:
        words += ["loss", "random", f"{wire.loss_percent:g}%"]
    return words


@contextmanager
def _held(namespace: Path, address: str) -> Iterator[Path]:
    """The namespace, opened once: a path that names this very one for as long as we are here.

    By its own path another may be found a moment later, and who found the path may have been wrong: a pid that an
    engine on another machine said is somebody else's here. Nothing may break a wire but a node's.
    """
    try:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DevnetError(f"there is no network namespace {namespace}: {error.strerror}") from None
    try:
        held, own = os.fstat(descriptor), Path("/proc/self/ns/net").stat()
        path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        # All namespaces are files of one file system, each with a number of its own there.
        other = held.st_dev == own.st_dev and held.st_ino != own.st_ino
        if not (other and address in _addresses(path)):
            raise DevnetError(
                f"{namespace} is not the network namespace of {address}: what runs the nodes must be on this machine"
            )
        yield path
    finally:
        os.close(descriptor)


def _addresses(namespace: Path) -> set[str]:
    said = run(inside(namespace, [tool("ip"), "-json", "-4", "address", "show"]))
    links = msgspec.json.decode(said, type=list[_Addressed])
    return {address.local for link in links for address in link.addr_info if address.local is not None}


def _set_rules(namespace: Path, chain: list[str]) -> None:
    present = run(inside(namespace, [tool("iptables-save"), "-t", TABLE])).splitlines()
    jumps = present.count(f"-A {_JUMP}")
    if not chain and not any(line.startswith(f":{CHAIN} ") for line in present):
        return
    # To declare a chain of one's own empties it. Every jump but one is too many, and that one comes first.
    lines = [f"*{TABLE}", f":{CHAIN} - [0:0]", *([f"-D {_JUMP}"] * jumps)]
    lines += [*chain, f"-I {_JUMP.replace(HOOK, f'{HOOK} 1', 1)}"] if chain else [f"-X {CHAIN}"]
    run(inside(namespace, [tool("iptables-restore"), "--noflush", "--wait", "5"]), "\n".join([*lines, "COMMIT", ""]))


def _shape(namespace: Path, wire: Wire) -> None:
    links = msgspec.json.decode(run(inside(namespace, [tool("ip"), "-json", "link", "show", "up"])), type=list[_Link])
    for device in [link.ifname for link in links if "LOOPBACK" not in link.flags]:
        if wire.shapes:
            run(inside(namespace, [tool("tc"), *netem(device, wire)]))
        elif f"qdisc netem {HANDLE} " in run(inside(namespace, [tool("tc"), "qdisc", "show", "dev", device])):
            run(inside(namespace, [tool("tc"), "qdisc", "del", "dev", device, "root"]))


class _Link(msgspec.Struct, frozen=True):
    """Of `ip -json link`, what is needed here."""

    ifname: str
    flags: list[str]


class _Address(msgspec.Struct, frozen=True):
    """Of `ip -json address`, what is needed here."""

    local: str | None = None


class _Addressed(msgspec.Struct, frozen=True):
    """One device there. ip leaves some of those empty that it was not asked for."""

    addr_info: list[_Address] = []


# the delayer


def _start_delayer(namespace: Path, wire: Wire, state: Path) -> None:
    """Unless one runs there that delays as much."""
    noted = _noted(state)
    asked = (wire.delay_ms, wire.jitter_ms)
    if noted is not None and (noted.delay_ms, noted.jitter_ms) == asked and _serves(noted.process, namespace):
        return
    _end_delayer(state)
    # As a file rather than a module, without the environment's packages: it needs none of them.
    command = [sys.executable, "-I", "-S", str(DELAYER), "--queue", str(QUEUE), "--noted", str(state)]
    command += ["--delay-ms", str(wire.delay_ms), "--jitter-ms", str(wire.jitter_ms)]
    log = state.with_suffix(".log")
    process = spawn(inside(namespace, command), log)
    write_private(state, msgspec.json.encode(_Delayer(process, wire.delay_ms, wire.jitter_ms)))
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _listens(process):
        if wait(process, 0) is not None or time.monotonic() > deadline:
            _end_delayer(state)
            said = log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
            raise DevnetError(f"the delayer of {state.parent.name} does not run: {said[-1][:300]}")
        time.sleep(_POLL_S)


def _end_delayer(state: Path) -> None:
    noted = _noted(state)
    if noted is None:
        return
    send(noted.process, signal.SIGTERM)
    if wait(noted.process, END_TIMEOUT_S) is None:
        send(noted.process, signal.SIGKILL)
        wait(noted.process, END_TIMEOUT_S)
    state.unlink(missing_ok=True)


def _noted(state: Path) -> _Delayer | None:
    try:
        return msgspec.json.decode(state.read_bytes(), type=_Delayer)
    except (FileNotFoundError, msgspec.DecodeError):
        # A delayer that a damaged note named ends by itself.
        return None


def _serves(process: Process, namespace: Path) -> bool:
    """Whether it runs, in this namespace and not in one that had the same name."""
    try:
        return is_running(process) and Path(f"/proc/{process.pid}/ns/net").samefile(namespace)
    except OSError:
        return False


def _listens(process: Process) -> bool:
    """Whether the queue is the process's: the kernel lists the number of each with its owner."""
    try:
        queues = Path(f"/proc/{process.pid}/net/netfilter/nfnetlink_queue").read_text().splitlines()
    except OSError:
        return False
    return any(line.split()[:2] == [str(QUEUE), str(process.pid)] for line in queues)
