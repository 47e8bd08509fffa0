"""Which node a daemon is: by its key in genesis, or by the id beside a key that genesis does not name."""

from pathlib import Path

import pytest

from ledger.genesis import Genesis
from ledger.keys import sha256
from ledger.node_cert import certificate_pem, key_pem, make_certificate
from node.config import Config, ConfigError, load_config
from node.daemon import identify, read_certificates
from tests.node.cluster import hospital, make_genesis, node_seed

GENESIS = make_genesis(2)


def write_identity(folder: Path, genesis: Genesis, seed: bytes, node_id: str | None = None, more: str = "") -> Path:
    """Genesis, key and configuration of a node; the path of the last."""
    (folder / "genesis.json").write_text(genesis.to_json())
    key_file = folder / "node.key"
    key_file.touch(mode=0o600)
    key_file.write_bytes(key_pem(seed, None))
    named = "" if node_id is None else f'id = "{node_id}"\n'
    text = f'[node]\ngenesis = "genesis.json"\ndata_dir = "data"\nkey_file = "node.key"\n{named}{more}'
    path = folder / "node.toml"
    path.write_text(text)
    return path


def configured(folder: Path, seed: bytes, node_id: str | None = None, more: str = "") -> Config:
    return load_config(write_identity(folder, GENESIS, seed, node_id, more))


@pytest.mark.parametrize("node_id", [None, hospital(1)])
def test_a_node_of_genesis_is_known_by_its_key(tmp_path: Path, node_id: str | None) -> None:
    found = identify(configured(tmp_path, node_seed(1), node_id))
    assert (found.node_id, found.certificate) == (hospital(1), GENESIS.nodes[1].certificate)


def test_a_joiner_brings_its_id_and_the_certificate_that_was_voted_for(tmp_path: Path) -> None:
    seed = sha256(b"joiner")
    found = identify(configured(tmp_path, seed, "joiner"))
    assert (found.node_id, found.certificate) == ("joiner", make_certificate(seed, "joiner"))


@pytest.mark.parametrize(
    ("seed", "node_id", "key", "expected"),
    [
        (sha256(b"joiner"), None, "node.key_file", "node.id beside it"),
        (sha256(b"joiner"), hospital(0), "node.id", "another key"),
        (node_seed(0), hospital(1), "node.id", f"gives this key, {hospital(0)}"),
    ],
    ids=["no id", "the id of a node of genesis", "another id than genesis gives"],
)
def test_what_names_no_node(tmp_path: Path, seed: bytes, node_id: str | None, key: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        identify(configured(tmp_path, seed, node_id))
    assert caught.value.path == key
    assert expected in str(caught.value)


INTRODUCED = '[peers.addresses]\nlater = "h:1"\n[peers.certificates]\nlater = "later.crt"\n'


def test_nodes_that_genesis_does_not_name_are_introduced_by_their_certificates(tmp_path: Path) -> None:
    certificate = make_certificate(sha256(b"later"), "later")
    (tmp_path / "later.crt").write_text(certificate_pem(certificate))
    assert read_certificates(configured(tmp_path, node_seed(0), more=INTRODUCED)) == {"later": certificate}


@pytest.mark.parametrize(
    "content",
    [None, b"", b"-----BEGIN CERTIFICATE-----\n", certificate_pem(make_certificate(sha256(b"later"), "b")).encode()],
    ids=["no file", "nothing", "half of one", "of another node"],
)
def test_a_certificate_that_introduces_nobody(tmp_path: Path, content: bytes | None) -> None:
    config = configured(tmp_path, node_seed(0), more=INTRODUCED)
    if content is not None:
        config.peers.certificates["later"].write_bytes(content)
    with pytest.raises(ConfigError, match=r"peers\.certificates\.later"):
        read_certificates(config)
