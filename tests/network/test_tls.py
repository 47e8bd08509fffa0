"""The TLS contexts: what they trust, and where the key never is."""

import ssl
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ledger.node_cert import key_pem
from network.port import Identity, Peer
from network.tls import Pins, TlsContexts
from tests.network.peers import identity, member


def contexts(node: Identity, *trusted: str) -> TlsContexts:
    return TlsContexts(node, [identity(name).certificate for name in trusted], lambda reason: None, lambda: 0.0)


def shake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A handshake in memory. Raises what either side raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends


def test_both_sides_see_each_others_certificate() -> None:
    client, server = shake(contexts(identity("b"), "a").dialling, contexts(identity("a"), "b").accepting)
    assert client.version() == "TLSv1.3"
    assert client.getpeercert(binary_form=True) == identity("a").certificate
    assert server.getpeercert(binary_form=True) == identity("b").certificate


def test_the_dialling_side_refuses_a_stranger() -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(contexts(identity("b"), "a").dialling, contexts(identity("stranger"), "b").accepting)


def test_a_certificate_is_trusted_once_it_is_named() -> None:
    accepting = contexts(identity("a"), "c")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(contexts(identity("b"), "a").dialling, accepting.accepting)
    accepting.trust([identity("b").certificate])
    shake(contexts(identity("b"), "a").dialling, accepting.accepting)


def test_the_key_reaches_openssl_through_a_private_file_that_holds_it_only_encrypted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[bytes, int, int]] = []
    load = ssl.SSLContext.load_cert_chain

    def spy(context: ssl.SSLContext, path: Path, *, password: Any) -> None:
        modes = [stat.S_IMODE(place.stat().st_mode) for place in (path, path.parent)]
        seen.append((path.read_bytes(), modes[0], modes[1]))
        load(context, path, password=password)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    node = identity("a")
    contexts(node, "b")
    assert [(mode, directory) for _, mode, directory in seen] == [(0o600, 0o700)] * 2
    for content, _, _ in seen:
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in content
        assert key_pem(node.seed, None).splitlines()[1] not in content
    assert list(tmp_path.iterdir()) == []


def test_pins_tell_nodes_apart_byte_by_byte() -> None:
    pins = Pins({"a": member("a"), "b": Peer(identity("b").certificate, None, "removed")})
    assert pins.find(identity("b").certificate) == ("b", Peer(identity("b").certificate, None, "removed"))
    assert pins.find(identity("b").certificate[:-1]) is None
    assert pins.find(identity("c").certificate) is None
    assert pins.find(None) is None


def test_an_identity_does_not_show_its_seed() -> None:
    assert identity("a").seed.decode() not in repr(identity("a"))
