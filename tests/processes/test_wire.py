"""The wire between two network namespaces, with everything that can be wrong with it."""

import os
import select
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from carequorum.devnet import DevnetError, wire
from carequorum.devnet.commands import inside, missing, tool
from carequorum.devnet.delayer import HELD_MAX, Held
from carequorum.devnet.faults import Wire
from carequorum.devnet.programs import run
from carequorum.processes import Process, wait
from tests.processes.sockets import socket_in

LACK = missing()
needs_namespaces = pytest.mark.skipif(LACK is not None, reason=str(LACK))
A, B = "198.18.0.1", "198.18.0.2"
HEALTHY = Wire()
QUIET_S = 0.4
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
PATIENCE_S = 20.0


class Pair(SimpleNamespace):
    """Two namespaces and their wire; `b` is the node whose wire is broken, `state` its file."""

    a: Path
    b: Path
    state: Path
    open: ExitStack

    def apply(self, wanted: Wire) -> None:
        wire.apply(self.b, B, wanted, self.state)

    def rules(self, table: str = wire.TABLE) -> list[str]:
        text = run(inside(self.b, [tool("iptables-save"), "-t", table]))
        return [line for line in text.splitlines() if line[:1] in "-:"]

    def restore(self, *lines: str, table: str = wire.TABLE) -> None:
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        run(inside(self.b, [tool("iptables-restore"), "--noflush"]), text)

    def tcp(self) -> tuple[socket.socket, socket.socket]:
        """The ends of a connection, at a and at b."""
        with socket_in(self.b, socket.SOCK_STREAM) as listener:
            listener.bind((B, 0))
            listener.listen(1)
            here = self.open.enter_context(socket_in(self.a, socket.SOCK_STREAM))
            here.settimeout(PATIENCE_S)
            here.connect(listener.getsockname())
            there = self.open.enter_context(listener.accept()[0])
        for end in (here, there):
            end.settimeout(PATIENCE_S)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return here, there

    def udp(self) -> tuple[socket.socket, socket.socket]:
        """Two sockets, the one at a connected to that at b."""
        here = self.open.enter_context(socket_in(self.a, socket.SOCK_DGRAM))
        there = self.open.enter_context(socket_in(self.b, socket.SOCK_DGRAM))
        there.bind((B, 0))
        here.connect(there.getsockname())
        # So that each knows where the other is: netem loses and delays that question (ARP) as well.
        for source, target in ((here, there), (there, here)):
            target.settimeout(PATIENCE_S)
            source.sendto(b"?", target.getsockname())
            assert target.recv(1) == b"?"
        return here, there

    def delayer(self) -> Process:
        """The one that runs; without one the test has nothing to show."""
        if wire.mechanism() == "netem":
            pytest.skip("this kernel has netem: there is no delayer")
        return msgspec.convert(msgspec.json.decode(self.state.read_bytes())["process"], Process)

    def queue(self) -> list[int]:
        """What the kernel says of the delayer's queue: number, port, held, copy mode, range, dropped for being
        full, dropped for want of memory.
        """
        text = Path(f"/proc/{self.delayer().pid}/net/netfilter/nfnetlink_queue").read_text()
        return [int(word) for word in text.split()]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    names = [f"cq-test-{os.getpid()}-{side}" for side in "ab"]
    ip = tool("ip")
    with ExitStack() as stack:
        for name in names:
            run([ip, "netns", "add", name])
            stack.callback(run, [ip, "netns", "del", name])
        run([ip, "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1]])
        for name, address in zip(names, (A, B), strict=True):
            lines = f"link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\n"
            run([ip, "-n", name, "-batch", "-"], lines)
        made = Pair(
            a=Path("/run/netns", names[0]), b=Path("/run/netns", names[1]), state=tmp_path / "wire.json", open=stack
        )
        stack.callback(wire.forget, made.state)
        yield made


def round_trip_s(here: socket.socket, there: socket.socket) -> float:
    started = time.monotonic()
    here.sendall(b"?")
    assert there.recv(1) == b"?"
    there.sendall(b"!")
    assert here.recv(1) == b"!"
    return time.monotonic() - started


def echoes(here: socket.socket, there: socket.socket, count: int) -> list[tuple[int, float]]:
    """Send `count` datagrams, return each; number and round trip in seconds of those that came back, in order."""
    found: list[tuple[int, float]] = []
    sent: list[float] = []
    here.setblocking(False)
    there.setblocking(False)
    while len(found) < count:
        ready, _, _ = select.select([here, there], [], [], 0 if len(sent) < count else QUIET_S)
        if there in ready:
            data, sender = there.recvfrom(100)
            there.sendto(data, sender)
        if here in ready:
            number = int(here.recv(100))
            found.append((number, time.monotonic() - sent[number]))
        if not ready and len(sent) == count:
            break
        if not ready:
            sent.append(time.monotonic())
            here.send(b"%d" % (len(sent) - 1))
    return found


def hears(end: socket.socket) -> bool:
    return bool(select.select([end], [], [], QUIET_S)[0])


@needs_namespaces
def test_a_delay_is_added_to_every_round_trip_and_can_be_changed(pair: Pair) -> None:
    here, there = pair.tcp()
    before_s = statistics.median(round_trip_s(here, there) for _ in range(9))
    pair.apply(Wire(delay_ms=100))
    delayed_s = [round_trip_s(here, there) for _ in range(7)]
    pair.apply(Wire(delay_ms=30))
    less_s = [round_trip_s(here, there) for _ in range(7)]
    pair.apply(HEALTHY)
    after_s = statistics.median(round_trip_s(here, there) for _ in range(9))
    assert min(delayed_s) >= 0.1
    assert min(less_s) >= 0.03
    # On a busy machine everything takes longer, but not every time.
    assert statistics.median(delayed_s) < 0.15
    assert statistics.median(less_s) < 0.08
    assert max(before_s, after_s) < 0.02


@needs_namespaces
def test_jitter_spreads_the_delays_on_both_sides_and_lets_packets_overtake(pair: Pair) -> None:
    here, there = pair.udp()
    pair.apply(Wire(delay_ms=100, jitter_ms=50))
    came = echoes(here, there, 200)
    times_s = sorted(time_s for _, time_s in came)
    assert len(came) == 200
    # Even on a busy machine some of them are not late.
    assert 0.05 <= times_s[0] < 0.1
    assert times_s[20] + 0.04 < times_s[180]
    assert times_s[180] > 0.12
    numbers = [number for number, _ in came]
    assert numbers != sorted(numbers)


@needs_namespaces
@pytest.mark.parametrize(("percent", "least", "most"), [(10.0, 200, 420), (50.0, 1300, 1700), (100.0, 3000, 3000)])
def test_the_asked_share_of_packets_is_lost(pair: Pair, percent: float, least: int, most: int) -> None:
    here, there = pair.udp()
    pair.apply(Wire(loss_percent=percent))
    lost = 3000 - len(echoes(here, there, 3000))
    assert least <= lost <= most


@needs_namespaces
def test_delay_and_loss_come_together(pair: Pair) -> None:
    here, there = pair.udp()
    pair.apply(Wire(delay_ms=50, loss_percent=50.0))
    came = echoes(here, there, 400)
    assert 100 < len(came) < 300
    assert min(time_s for _, time_s in came) >= 0.05


@needs_namespaces
def test_a_cut_silences_one_direction_of_a_connection_and_healing_restores_it(pair: Pair) -> None:
    here, there = pair.tcp()
    round_trip_s(here, there)
    pair.apply(Wire(dropped=("198.18.0.77", A)))
    here.sendall(b"a to b")
    there.sendall(b"b to a")
    assert here.recv(100) == b"b to a"
    assert not hears(there)
    pair.apply(HEALTHY)
    assert there.recv(100) == b"a to b"
    round_trip_s(here, there)


@needs_namespaces
def test_a_cut_from_another_address_is_not_felt(pair: Pair) -> None:
    here, there = pair.tcp()
    pair.apply(Wire(dropped=("198.18.0.77",)))
    round_trip_s(here, there)


@needs_namespaces
def test_loopback_is_left_alone(pair: Pair) -> None:
    pair.apply(Wire(dropped=(A,), delay_ms=500, loss_percent=100.0))
    one = pair.open.enter_context(socket_in(pair.b, socket.SOCK_DGRAM))
    other = pair.open.enter_context(socket_in(pair.b, socket.SOCK_DGRAM))
    # Its own address is reached by the loopback device, too.
    for address in ("127.0.0.1", B):
        one.sendto(b"x", (address, _bound(other, address)))
        other.settimeout(QUIET_S)
        assert other.recv(1) == b"x"
        other = pair.open.enter_context(socket_in(pair.b, socket.SOCK_DGRAM))


def _bound(end: socket.socket, address: str) -> int:
    end.bind((address, 0))
    port: int = end.getsockname()[1]
    return port


@needs_namespaces
def test_twice_is_once(pair: Pair) -> None:
    broken = Wire(dropped=("198.18.0.77",), delay_ms=40, jitter_ms=10, loss_percent=2.5)
    clean = pair.rules()
    pair.apply(broken)
    rules, state = pair.rules(), pair.state.exists() and pair.state.read_bytes()
    pair.apply(broken)
    assert pair.rules() == rules != clean
    assert (pair.state.exists() and pair.state.read_bytes()) == state
    for _ in range(2):
        pair.apply(HEALTHY)
        assert wire.CHAIN not in "".join(pair.rules())
        assert not pair.state.exists()


@needs_namespaces
def test_the_rules_of_others_survive_and_ours_are_mended(pair: Pair) -> None:
    theirs = ["-A INPUT -s 203.0.113.9/32 -j DROP", "-A OTHER -j RETURN"]
    for table in ("mangle", "filter"):
        pair.restore(":OTHER - [0:0]", *theirs, table=table)
    before = {table: pair.rules(table) for table in ("mangle", "filter")}
    pair.apply(Wire(dropped=(A,)))
    rules = pair.rules()
    # As half an edit by hand would leave it.
    pair.restore(f"-A INPUT -j {wire.CHAIN}", f"-A {wire.CHAIN} -s 203.0.113.8/32 -j ACCEPT")
    pair.apply(Wire(dropped=(A,)))
    assert pair.rules() == rules
    pair.apply(HEALTHY)
    assert {table: pair.rules(table) for table in ("mangle", "filter")} == before


@needs_namespaces
def test_packets_pass_when_the_delayer_is_killed_and_the_next_apply_starts_another(pair: Pair) -> None:
    here, there = pair.tcp()
    pair.apply(Wire(delay_ms=100))
    first = pair.delayer()
    os.kill(first.pid, signal.SIGKILL)
    assert wait(first, PATIENCE_S) is not None
    assert statistics.median(round_trip_s(here, there) for _ in range(5)) < 0.05
    pair.apply(Wire(delay_ms=100))
    assert pair.delayer().pid != first.pid
    assert round_trip_s(here, there) >= 0.1


@needs_namespaces
def test_a_bounded_number_of_packets_is_held_and_all_of_them_go_on_when_it_ends(pair: Pair) -> None:
    here, there = pair.udp()
    there.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * 1024 * 1024)
    pair.apply(Wire(delay_ms=60_000))
    pair.delayer()
    for _ in range(HELD_MAX + 500):
        here.send(b"x")
    # What a socket sends goes through the queue before the call returns, but the card may hand it over later.
    held, dropped = _settled(pair)
    assert (held, dropped) == (HELD_MAX, 500)
    pair.apply(HEALTHY)
    there.settimeout(PATIENCE_S)
    for _ in range(HELD_MAX):
        assert there.recv(1) == b"x"
    assert not hears(there)


def _settled(pair: Pair) -> tuple[int, int]:
    """How many are held, and how many were dropped, once all that were sent are one or the other."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        _, _, held, _, _, full, memory, *_ = pair.queue()
        if held + full + memory >= HELD_MAX + 500 or time.monotonic() > deadline:
            return held, full + memory
        time.sleep(0.01)


@needs_namespaces
def test_a_namespace_that_is_gone_is_said_and_its_delayer_ends(pair: Pair) -> None:
    pair.apply(Wire(delay_ms=100))
    with pytest.raises(DevnetError, match="there is no network namespace /run/netns/cq-none"):
        wire.apply(Path("/run/netns/cq-none"), B, Wire(delay_ms=1), pair.state)
    running = pair.delayer()
    wire.forget(pair.state)
    assert not pair.state.exists()
    assert wait(running, 0) is not None


@needs_namespaces
@pytest.mark.parametrize("whose", ["our own", "the other node's", "no namespace"])
def test_only_the_namespace_that_has_the_address_is_touched(pair: Pair, tmp_path: Path, whose: str) -> None:
    plain = tmp_path / "file"
    plain.touch()
    namespace = {"our own": Path("/proc/self/ns/net"), "the other node's": pair.a, "no namespace": plain}[whose]
    here, there = pair.tcp()
    with pytest.raises(DevnetError, match=f"{namespace} is not the network namespace of {B}") as raised:
        wire.apply(namespace, B, Wire(dropped=(A, B), loss_percent=100.0), pair.state)
    assert "\n" not in str(raised.value)
    assert not pair.state.exists()
    round_trip_s(here, there)
    # The address of loopback is in every namespace; ours is refused all the same.
    with pytest.raises(DevnetError, match="is not the network namespace of"):
        wire.apply(Path("/proc/self/ns/net"), "127.0.0.1", HEALTHY, pair.state)


def test_what_netem_is_told() -> None:
    start = ["qdisc", "replace", "dev", "eth0", "root", "handle", "cc:", "netem", "limit", "10000"]
    assert wire.netem("eth0", Wire(delay_ms=200, jitter_ms=50)) == [*start, "delay", "200ms", "50ms"]
    assert wire.netem("eth0", Wire(delay_ms=200)) == [*start, "delay", "200ms"]
    assert wire.netem("eth0", Wire(loss_percent=2.5)) == [*start, "loss", "random", "2.5%"]
    both = Wire(delay_ms=7, jitter_ms=7, loss_percent=100.0)
    assert wire.netem("eth0", both) == [*start, "delay", "7ms", "7ms", "loss", "random", "100%"]


def test_rules_cut_by_source_and_delay_only_where_netem_does_not() -> None:
    broken = Wire(dropped=(A, B), delay_ms=10, loss_percent=5.0)
    start = [f"-A {wire.CHAIN} {rule}" for rule in ("-i lo -j RETURN", f"-s {A}/32 -j DROP", f"-s {B}/32 -j DROP")]
    assert wire.rules(broken, "netem") == start
    assert wire.rules(broken, "queue") == [
        *start,
        f"-A {wire.CHAIN} -m statistic --mode random --probability 0.050000 -j DROP",
        f"-A {wire.CHAIN} -j NFQUEUE --queue-num {wire.QUEUE} --queue-bypass",
    ]
    assert wire.rules(Wire(delay_ms=10), "netem") == wire.rules(HEALTHY, "queue") == []


def test_held_packets_are_due_one_by_one() -> None:
    held = Held(delay_s=1.0, jitter_s=0.0)
    for packet, now in ((7, 0.0), (8, 0.25), (9, 0.5)):
        held.add(packet, now)
    assert held.next_s(0.25) == 0.75
    assert held.take(0.75) == []
    assert held.take(1.25) == [7, 8]
    assert held.next_s(2.0) == 0.0
    assert held.take(2.0) == [9]
    assert held.next_s(2.0) == float("inf")
