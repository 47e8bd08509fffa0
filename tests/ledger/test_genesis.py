"""Genesis: two views of one document, its chain id, and the rules that it keeps."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import CertificateBuilder, Name, random_serial_number

from ledger.contracts import identity, network
from ledger.contracts.context import read_as
from ledger.encoding import decode, encode
from ledger.errors import Rejection
from ledger.execution import genesis_state
from ledger.genesis import (
    GENESIS_BYTES_MAX,
    GENESIS_JSON_CHARACTERS_MAX,
    Genesis,
    Node,
    Organisation,
    decode_genesis,
    genesis_from_json,
    read_genesis,
)
from tests.ledger.founding import CHAIN, GENESIS, account_of, make_genesis, signing_key

SMALL_ORDER = bytes(32)  # the point of order 4: a signature under it can fit any message


def changed(**fields: object) -> Genesis:
    return msgspec.structs.replace(GENESIS, **fields)


def with_node(**fields: object) -> Genesis:
    return changed(nodes=[msgspec.structs.replace(GENESIS.nodes[0], **fields), *GENESIS.nodes[1:]])


def with_organisation(**fields: object) -> Genesis:
    first, *others = GENESIS.organisations
    return changed(organisations=[msgspec.structs.replace(first, **fields), *others])


def elliptic_certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = CertificateBuilder(
        issuer_name=Name([]),
        subject_name=Name([]),
        public_key=key.public_key(),
        serial_number=random_serial_number(),
        not_valid_before=datetime(2000, 1, 1, tzinfo=UTC),
        not_valid_after=datetime(2100, 1, 1, tzinfo=UTC),
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def code_of(genesis: Genesis) -> str:
    with pytest.raises(Rejection) as caught:
        decode_genesis(genesis.encode())
    with pytest.raises(Rejection):
        genesis_from_json(genesis.to_json())
    return caught.value.code


def test_both_views_are_one_genesis() -> None:
    assert decode_genesis(GENESIS.encode()) == GENESIS
    assert genesis_from_json(GENESIS.to_json()) == GENESIS
    assert read_genesis(GENESIS.encode()) == GENESIS
    assert read_genesis(b"\n " + GENESIS.to_json().encode()) == GENESIS


def test_the_chain_id_names_everything_in_it() -> None:
    ids = {
        CHAIN,
        make_genesis("another").chain_id(),
        changed(time=GENESIS.time + 1).chain_id(),
        with_node(address="127.0.0.1:1").chain_id(),
        with_organisation(name="Other").chain_id(),
    }
    assert len(ids) == 5
    assert genesis_from_json(GENESIS.to_json()).chain_id() == CHAIN


def test_voters_and_learners_are_the_first_configuration() -> None:
    configuration = GENESIS.configuration()
    assert list(configuration.voters) == ["north-1", "south-1", "west-1"]
    assert configuration.learners == ["zone-1"]
    assert sorted(GENESIS.node_keys()) == ["north-1", "south-1", "west-1", "zone-1"]


def twice(items: list[Any]) -> list[Any]:
    return [items[0], *items]


@pytest.mark.parametrize(
    ("genesis", "code"),
    [
        (changed(format=2), "unknown_format"),
        (changed(nodes=GENESIS.nodes[::-1]), "bad_genesis"),
        (changed(nodes=twice(GENESIS.nodes)), "bad_genesis"),
        (changed(nodes=GENESIS.nodes[-1:]), "bad_genesis"),
        (changed(nodes=[]), "bad_structure"),
        (changed(organisations=GENESIS.organisations[::-1]), "bad_genesis"),
        (changed(organisations=twice(GENESIS.organisations)), "bad_genesis"),
        (changed(organisations=GENESIS.organisations[:1]), "bad_genesis"),
        (changed(organisations=[]), "bad_structure"),
        (with_node(certificate=GENESIS.nodes[1].certificate), "bad_genesis"),
        (with_node(certificate=b"not DER"), "bad_certificate"),
        (with_node(certificate=elliptic_certificate()), "bad_certificate"),
        (with_node(certificate=bytes(2000)), "bad_structure"),
        (with_node(address="127.0.0.1"), "bad_structure"),
        (with_node(address="127.0.0.1:0"), "bad_genesis"),
        (with_node(address="127.0.0.1:65536"), "bad_genesis"),
        (with_node(id="Not An Id"), "bad_structure"),
        (with_node(role="king"), "bad_structure"),
        (with_organisation(admin_keys=[]), "bad_structure"),
        (with_organisation(admin_keys=twice(GENESIS.organisations[0].admin_keys)), "bad_genesis"),
        (with_organisation(admin_keys=GENESIS.organisations[1].admin_keys), "bad_genesis"),
        (with_organisation(admin_keys=[SMALL_ORDER]), "bad_genesis"),
        (with_organisation(kind="bakery"), "bad_structure"),
        (with_organisation(name=""), "bad_structure"),
    ],
)
def test_rules(genesis: Genesis, code: str) -> None:
    assert code_of(genesis) == code


def test_what_is_neither_view() -> None:
    cases = {
        b"": "not_canonical",
        b"{": "bad_genesis",
        b'{"format": 1}': "bad_genesis",
        b'{"\xff": 1}': "bad_genesis",
        b"[" * 100: "not_canonical",
        encode({"format": 1}): "bad_structure",
        bytes(GENESIS_BYTES_MAX + 1): "too_large",
        b"{" + b" " * GENESIS_JSON_CHARACTERS_MAX: "too_large",
    }
    for data, code in cases.items():
        with pytest.raises(Rejection) as caught:
            read_genesis(data)
        assert caught.value.code == code, data[:20]


def test_the_first_state_is_genesis_and_nothing_more() -> None:
    state = genesis_state(GENESIS)
    assert sorted(state) == sorted(
        [
            "network/configuration",
            "network/nodes",
            "network/organisations",
            "network/parameters",
            *(network.node_path(node.id) for node in GENESIS.nodes),
            *(network.node_key_path(key) for key in GENESIS.node_keys().values()),
            *(identity.organisation_path(organisation.id) for organisation in GENESIS.organisations),
            *(identity.account_path(account_of(name)) for name in ("north-admin", "south-admin")),
            *(identity.key_path(signing_key(name).public) for name in ("north-admin", "south-admin")),
        ]
    )
    for value in state.values():
        assert encode(decode(value, 64 * 1024)) == value
    node = read_as(state.get, network.Node, network.node_path("north-1"))
    assert node is not None
    assert (node.certificate, node.role) == (GENESIS.nodes[0].certificate, "voter")
    parameters = read_as(state.get, network.Parameters, network.PARAMETERS_PATH)
    assert parameters == network.Parameters(1024 * 1024, 1_000, 1)
    organisation = read_as(state.get, identity.Organisation, identity.organisation_path("north"))
    assert organisation == identity.Organisation([account_of("north-admin")], 1, "hospital", "North")


def test_the_largest_genesis_still_fits() -> None:
    """64 nodes and 256 organisations of 16 admins each, every text at its longest."""
    node, organisation = GENESIS.nodes[0], GENESIS.organisations[0]
    nodes = [
        Node(f"{'a' * 255}:65535", bytes(1024), f"{index:032d}", node.organisation, "voter") for index in range(64)
    ]
    organisations = [
        Organisation([bytes(32)] * 16, f"{index:032d}", organisation.kind, "n" * 128) for index in range(256)
    ]
    largest = changed(nodes=nodes, organisations=organisations, network="n" * 128)
    assert len(largest.encode()) < GENESIS_BYTES_MAX
    assert len(largest.to_json()) < GENESIS_JSON_CHARACTERS_MAX
