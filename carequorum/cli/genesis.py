"""`carequorum genesis`: found a network from a plan that people can read."""

import time
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from carequorum.cli.options import AsJson, parse_hex
from carequorum.cli.output import USAGE, CommandError, emit, write_new
from ledger.errors import Rejection
from ledger.genesis import FORMAT, Genesis, Node, Organisation, Parameters, genesis_from_json

app = typer.Typer(help="The document that founds a network.")


@app.callback()
def group() -> None:
    """The document that founds a network."""


class _PlannedOrganisation(msgspec.Struct, forbid_unknown_fields=True):
    admin_keys: list[str]
    id: str
    kind: Literal["hospital", "insurer", "board", "other"]
    name: str


class _PlannedNode(msgspec.Struct, forbid_unknown_fields=True):
    address: str
    certificate: str
    id: str
    organisation: str
    role: Literal["voter", "learner"] = "voter"


class _Plan(msgspec.Struct, forbid_unknown_fields=True):
    """Admin keys are hex; a certificate is a PEM file, relative to the plan."""

    network: str
    nodes: list[_PlannedNode]
    organisations: list[_PlannedOrganisation]
    parameters: Parameters = Parameters()


@app.command(epilog="Example: carequorum genesis new network.toml --out genesis.json")
def new(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="TOML: network, [[organisations]], [[nodes]], [parameters].")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the genesis file; never overwritten.")],
    as_json: AsJson = False,
) -> None:
    """Make a genesis file from a plan. Its hash, the chain id, names the network from then on.

    An organisation has id, name, kind (hospital, insurer, board or other) and admin_keys (hex, from
    `carequorum keys show`); a node has id, organisation, address (host:port of its peer port), certificate
    (the PEM file from `carequorum keys new --node`) and role (voter or learner).
    """
    try:
        planned = msgspec.convert(tomllib.loads(plan.read_text()), _Plan)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise CommandError(f"{plan}: {error}", USAGE) from None
    genesis = _genesis(planned, plan.parent)
    write_new(out, genesis.to_json().encode("utf-8"), 0o644)
    chain = genesis.chain_id().hex()
    emit(as_json, {"chain": chain, "file": str(out)}, [f"chain  {chain}", f"file   {out}"])


def _genesis(plan: _Plan, folder: Path) -> Genesis:
    genesis = Genesis(
        format=FORMAT,
        network=plan.network,
        nodes=[
            Node(node.address, _der(folder / node.certificate), node.id, node.organisation, node.role)
            for node in sorted(plan.nodes, key=lambda node: node.id)
        ],
        organisations=[
            Organisation(
                [parse_hex(key, 32, f"an admin key of {each.id}") for key in each.admin_keys],
                each.id,
                each.kind,
                each.name,
            )
            for each in sorted(plan.organisations, key=lambda each: each.id)
        ],
        parameters=plan.parameters,
        time=time.time_ns() // 1_000_000,
    )
    # Read back as every node will read it, so that whatever they would refuse is refused here.
    return genesis_from_json(genesis.to_json())


def _der(path: Path) -> bytes:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
    except ValueError:
        raise Rejection("bad_certificate", f"{path} is not a PEM certificate") from None
