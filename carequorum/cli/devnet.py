"""`carequorum devnet`: a network of hospitals on this machine, for development: started, watched, broken."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from carequorum.cli.options import AsJson
from carequorum.cli.output import USAGE, CommandError, columns, emit, progress
from carequorum.devnet import Devnet, DevnetError, DevnetNode, Faults, create
from carequorum.devnet.faults import parse_duration_ms, parse_groups, parse_percent
from carequorum.processes import Ended

app = typer.Typer(help="A network of hospitals on this machine, for development.")

LOG_LINES_MAX = 100_000
# What the daemon's configuration allows (devnet.clock_offset_ms): a day.
CLOCK_MS_MAX = 86_400_000

Directory = Annotated[
    Path,
    typer.Option(
        "--dir", metavar="DIR", envvar="CAREQUORUM_DEVNET", help="The network's folder; it holds all its keys."
    ),
]
Chosen = Annotated[list[str] | None, typer.Argument(metavar="[NODE]...", help="Node ids; all if none is given.")]
Leader = Annotated[bool, typer.Option("--leader", help="The node that leads now.")]
One = Annotated[str, typer.Argument(metavar="NODE", help="A node id.")]


@app.command(epilog="Example: carequorum devnet up --nodes 4 --dir build/devnet")
def up(
    directory: Directory = Path("devnet"),
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="What runs the nodes: process (default), netns or docker.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="How many hospitals; 4 for a new network.")] = None,
    learners: Annotated[int | None, typer.Option(metavar="N", help="How many clinics without a vote; 0.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create the network if the folder is new, and start every daemon that does not run."""
    if (directory / "devnet.json").exists():
        network = Devnet(directory)
        _same(network, backend, nodes, learners)
    else:
        network = create(directory, nodes, learners=learners, backend=backend or "process")
    _show(network, as_json, _start(network, network.nodes))


@app.command(epilog="Example: carequorum devnet down --dir build/devnet")
def down(
    directory: Directory = Path("devnet"),
    volumes: Annotated[
        bool, typer.Option("--volumes", help="With docker: delete the volumes too, with every key and store.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask every daemon to stop, wait until it has, and remove what it ran in. The folder stays."""
    ended = Devnet(directory).down(volumes=volumes)
    emit(as_json, {node: _how(how) for node, how in ended.items()}, _lines(ended))
    _none_left(ended)


@app.command(epilog="Example: carequorum devnet status --dir build/devnet --json")
def status(directory: Directory = Path("devnet"), as_json: AsJson = False) -> None:
    """Which daemons run, where, what they say of themselves, and what is wrong with the wires between them."""
    _show(Devnet(directory), as_json)


@app.command(epilog="Example: carequorum devnet logs hospital-a --lines 20 --dir build/devnet")
def logs(
    nodes: Chosen = None,
    directory: Directory = Path("devnet"),
    lines: Annotated[int, typer.Option(metavar="N", min=1, max=LOG_LINES_MAX, help="How many of the last.")] = 100,
    as_json: AsJson = False,
) -> None:
    """The last lines that daemons wrote, of all their starts."""
    network = Devnet(directory)
    chosen = _chosen(network, nodes)
    said = {node.id: network.last_lines(node, lines) for node in chosen}
    alone = len(chosen) == 1
    emit(as_json, said, (line if alone else f"{node}  {line}" for node, found in said.items() for line in found))


@app.command(epilog="Example: carequorum devnet kill --leader --dir build/devnet")
def kill(
    nodes: Chosen = None, directory: Directory = Path("devnet"), leader: Leader = False, as_json: AsJson = False
) -> None:
    """End daemons with SIGKILL, as a power cut would."""
    network = Devnet(directory)
    ended = network.kill(_chosen_or_leader(network, nodes, leader=leader))
    emit(as_json, {node: _how(how) for node, how in ended.items()}, _lines(ended))


@app.command(epilog="Example: carequorum devnet restart hospital-a --dir build/devnet")
def restart(nodes: Chosen = None, directory: Directory = Path("devnet"), as_json: AsJson = False) -> None:
    """Stop daemons if they run, then start them."""
    network = Devnet(directory)
    chosen = _chosen(network, nodes)
    _none_left(network.stop(chosen))
    _show(network, as_json, _start(network, chosen))


@app.command(epilog="Example: carequorum devnet pause --leader --dir build/devnet")
def pause(
    nodes: Chosen = None, directory: Directory = Path("devnet"), leader: Leader = False, as_json: AsJson = False
) -> None:
    """Stop daemons in the middle of whatever they do, with their connections open. `resume` lets them go on."""
    network = Devnet(directory)
    network.pause(_chosen_or_leader(network, nodes, leader=leader))
    _show(network, as_json)


@app.command(epilog="Example: carequorum devnet resume --dir build/devnet")
def resume(nodes: Chosen = None, directory: Directory = Path("devnet"), as_json: AsJson = False) -> None:
    """Let daemons that were paused go on."""
    network = Devnet(directory)
    network.resume(_chosen(network, nodes) if nodes else [node for node in network.nodes if network.paused(node)])
    _show(network, as_json)


@app.command(epilog="Example: carequorum devnet partition 'hospital-a,hospital-b | hospital-c,hospital-d'")
def partition(
    groups: Annotated[list[str], typer.Argument(metavar="'A,B | C,D'", help="Groups of node ids.")],
    directory: Directory = Path("devnet"),
    as_json: AsJson = False,
) -> None:
    """Cut groups of nodes from each other, instead of all cuts before. Who is in no group is cut from nobody."""
    _wires(Devnet(directory).partition(parse_groups(" ".join(groups))), as_json)


@app.command(epilog="Example: carequorum devnet oneway hospital-a hospital-b --dir build/devnet")
def oneway(source: One, target: One, directory: Directory = Path("devnet"), as_json: AsJson = False) -> None:
    """Drop what the first node sends to the second, and not what comes back; beside what is cut already."""
    _wires(Devnet(directory).oneway(source, target), as_json)


@app.command(epilog="Example: carequorum devnet delay hospital-a 100ms 20ms --dir build/devnet")
def delay(
    node: One,
    duration: Annotated[str, typer.Argument(metavar="DELAY", help="Like 100ms or 1s; 0ms ends it.")],
    jitter: Annotated[str, typer.Argument(metavar="JITTER", help="More or less by up to this.")] = "0ms",
    directory: Directory = Path("devnet"),
    as_json: AsJson = False,
) -> None:
    """Delay a node's packets one way, so that every round trip with it takes so much longer."""
    _wires(Devnet(directory).delay(node, parse_duration_ms(duration), parse_duration_ms(jitter)), as_json)


@app.command(epilog="Example: carequorum devnet loss hospital-a 5% --dir build/devnet")
def loss(
    node: One,
    share: Annotated[str, typer.Argument(metavar="SHARE", help="Like 5%; 0% ends it.")],
    directory: Directory = Path("devnet"),
    as_json: AsJson = False,
) -> None:
    """Lose a share of a node's packets, one way."""
    _wires(Devnet(directory).loss(node, parse_percent(share)), as_json)


@app.command(epilog="Example: carequorum devnet heal --dir build/devnet")
def heal(directory: Directory = Path("devnet"), as_json: AsJson = False) -> None:
    """End every partition, cut, delay and loss. Nodes that are paused or killed stay so."""
    _wires(Devnet(directory).heal(), as_json)


@app.command(
    context_settings={"ignore_unknown_options": True}, epilog="Example: carequorum devnet clock hospital-a -10s"
)
def clock(
    node: One,
    offset: Annotated[str, typer.Argument(metavar="OFFSET", help="Like 10s or -500ms; 0s sets it right.")],
    directory: Directory = Path("devnet"),
    as_json: AsJson = False,
) -> None:
    """Set a node's clock ahead of this machine's or behind it, and start the node again if it runs."""
    network = Devnet(directory)
    member, offset_ms = network.node(node), parse_duration_ms(offset)
    if abs(offset_ms) > CLOCK_MS_MAX:
        raise DevnetError(f"a clock {offset} off; possible is {CLOCK_MS_MAX // 1_000} s at most, ahead or behind")
    runs = network.pid(member) is not None
    _none_left(network.stop([member]))
    network.configure(member, {"devnet": {"clock_offset_ms": offset_ms}})
    _show(network, as_json, _start(network, [member] if runs else []))


def _same(network: Devnet, backend: str | None, nodes: int | None, learners: int | None) -> None:
    """DevnetError unless the network is what was asked for."""
    counts = {role: sum(node.role == role for node in network.nodes) for role in ("voter", "learner")}
    asked = {"backend": backend, "nodes": nodes, "learners": learners}
    has = {"backend": network.backend_name, "nodes": counts["voter"], "learners": counts["learner"]}
    for what, value in asked.items():
        if value not in (None, has[what]):
            raise DevnetError(f"{network.directory} holds a network with {what} {has[what]}, not {value}")


def _chosen(network: Devnet, ids: list[str] | None) -> list[DevnetNode]:
    return [network.node(node_id) for node_id in dict.fromkeys(ids)] if ids else list(network.nodes)


def _chosen_or_leader(network: Devnet, ids: list[str] | None, *, leader: bool) -> list[DevnetNode]:
    if not leader:
        return _chosen(network, ids)
    if ids:
        raise CommandError("give either node ids or --leader", USAGE)
    leading = network.leader()
    if leading is None:
        raise CommandError("no node leads now")
    return [leading]


def _start(network: Devnet, nodes: list[DevnetNode]) -> list[DevnetNode]:
    """Those that the network removed, whose daemons therefore ended."""
    ready: list[DevnetNode] = []
    with progress("starting daemons") as show:

        def note(node: DevnetNode) -> None:
            ready.append(node)
            show(len(ready), len(nodes))

        return network.start(nodes, on_ready=note)


def _show(network: Devnet, as_json: bool, removed: Iterable[DevnetNode] = ()) -> None:
    found, faults = network.status(), network.faults
    rows: list[list[object]] = [["NODE", "PID", "READY", "ROLE", "TERM", "COMMITTED", "SEALED", "PROVIDER PORT"]]
    for node in found:
        view = node.network
        said = [view.role, view.term, view.heights.committed, view.heights.sealed] if view else [None] * 4
        rows.append([node.id, node.pid, _readiness(node.paused, node.ready), *said, node.url])
    out = [node.id for node in removed]
    notes = [f"{node_id} was removed from the network by a vote; its daemon ended" for node_id in out]
    if faults != Faults():
        notes.append(f"wires: {faults} (carequorum devnet heal)")
    facts = {
        "dir": str(network.directory),
        "backend": network.backend_name,
        "nodes": msgspec.to_builtins(found),
        "removed": out,
        "faults": msgspec.to_builtins(faults),
    }
    emit(as_json, facts, [*columns(rows), *notes])


def _readiness(paused: bool, ready: bool) -> str:
    return "paused" if paused else "yes" if ready else "no"


def _wires(faults: Faults, as_json: bool) -> None:
    emit(as_json, msgspec.to_builtins(faults), [f"wires: {faults}"])


def _none_left(ended: dict[str, Ended | None]) -> None:
    still = [node for node, how in ended.items() if how is None]
    if still:
        raise CommandError(f"still running: {', '.join(still)} (carequorum devnet kill)")


def _how(ended: Ended | None) -> str:
    if ended is None:
        return "running"
    return "ended" if ended.code is None else f"ended with {ended.code}"


def _lines(ended: dict[str, Ended | None]) -> list[str]:
    return columns([[node, _how(how)] for node, how in ended.items()]) or ["nothing was running"]
