"""`carequorum devnet`: a network of hospitals on this machine, for development."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from carequorum.cli.options import AsJson
from carequorum.cli.output import CommandError, columns, emit, progress
from carequorum.devnet import Devnet, DevnetError, DevnetNode, create
from carequorum.processes import Ended

app = typer.Typer(help="A network of hospitals on this machine, for development.")

Directory = Annotated[
    Path,
    typer.Option(
        "--dir", metavar="DIR", envvar="CAREQUORUM_DEVNET", help="The network's folder; it holds all its keys."
    ),
]
Chosen = Annotated[list[str] | None, typer.Argument(metavar="[NODE]...", help="Node ids; all if none is given.")]


@app.command(epilog="Example: carequorum devnet up --nodes 4 --dir build/devnet")
def up(
    directory: Directory = Path("devnet"),
    nodes: Annotated[int | None, typer.Option(metavar="N", help="How many hospitals; 4 for a new network.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create the network if the folder is new, and start every daemon that does not run."""
    if (directory / "devnet.json").exists():
        network = Devnet(directory)
        if nodes not in (None, len(network.nodes)):
            raise DevnetError(f"{directory} holds a network of {len(network.nodes)} nodes, not {nodes}")
    else:
        network = create(directory, 4 if nodes is None else nodes)
    _show(network, as_json, _start(network, network.nodes))


@app.command(epilog="Example: carequorum devnet down --dir build/devnet")
def down(directory: Directory = Path("devnet"), as_json: AsJson = False) -> None:
    """Ask every daemon to stop, and wait until it has."""
    network = Devnet(directory)
    ended = network.stop(network.nodes)
    emit(as_json, {node: _how(how) for node, how in ended.items()}, _lines(ended))
    still = [node for node, how in ended.items() if how is None]
    if still:
        raise CommandError(f"still running: {', '.join(still)} (carequorum devnet kill)")


@app.command(epilog="Example: carequorum devnet status --dir build/devnet --json")
def status(directory: Directory = Path("devnet"), as_json: AsJson = False) -> None:
    """Which daemons run, where, and what they say of themselves."""
    _show(Devnet(directory), as_json)


@app.command(epilog="Example: carequorum devnet kill --leader --dir build/devnet")
def kill(
    nodes: Chosen = None,
    directory: Directory = Path("devnet"),
    leader: Annotated[bool, typer.Option("--leader", help="The node that leads now.")] = False,
    as_json: AsJson = False,
) -> None:
    """End daemons with SIGKILL, as a power cut would."""
    network = Devnet(directory)
    if leader and nodes:
        raise CommandError("give either node ids or --leader", 2)
    if leader:
        leading = network.leader()
        if leading is None:
            raise CommandError("no node leads now")
        chosen = [leading]
    else:
        chosen = _chosen(network, nodes)
    ended = network.kill(chosen)
    emit(as_json, {node: _how(how) for node, how in ended.items()}, _lines(ended))


@app.command(epilog="Example: carequorum devnet restart hospital-a --dir build/devnet")
def restart(nodes: Chosen = None, directory: Directory = Path("devnet"), as_json: AsJson = False) -> None:
    """Stop daemons if they run, then start them."""
    network = Devnet(directory)
    chosen = _chosen(network, nodes)
    still = [node for node, how in network.stop(chosen).items() if how is None]
    if still:
        raise CommandError(f"did not stop: {', '.join(still)} (carequorum devnet kill)")
    _show(network, as_json, _start(network, chosen))


def _chosen(network: Devnet, ids: list[str] | None) -> list[DevnetNode]:
    return [network.node(node_id) for node_id in ids] if ids else list(network.nodes)


def _start(network: Devnet, nodes: list[DevnetNode]) -> list[DevnetNode]:
    """Those that the network removed, whose daemons therefore ended."""
    ready: list[DevnetNode] = []
    with progress("starting daemons") as show:

        def note(node: DevnetNode) -> None:
            ready.append(node)
            show(len(ready), len(nodes))

        return network.start(nodes, on_ready=note)


def _show(network: Devnet, as_json: bool, removed: Iterable[DevnetNode] = ()) -> None:
    found = network.status()
    rows: list[list[object]] = [["NODE", "PID", "READY", "ROLE", "TERM", "COMMITTED", "SEALED", "PROVIDER PORT"]]
    for node in found:
        view = node.network
        said = [view.role, view.term, view.heights.committed, view.heights.sealed] if view else [None] * 4
        rows.append([node.id, node.pid, "yes" if node.ready else "no", *said, node.url])
    out = [node.id for node in removed]
    ended = [f"{node_id} was removed from the network by a vote; its daemon ended" for node_id in out]
    facts = {"dir": str(network.directory), "nodes": msgspec.to_builtins(found), "removed": out}
    emit(as_json, facts, [*columns(rows), *ended])


def _how(ended: Ended | None) -> str:
    if ended is None:
        return "running"
    return "ended" if ended.code is None else f"ended with {ended.code}"


def _lines(ended: dict[str, Ended | None]) -> list[str]:
    return columns([[node, _how(how)] for node, how in ended.items()]) or ["nothing was running"]
