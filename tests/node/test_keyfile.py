import os
from pathlib import Path

import pytest

from ledger.errors import Rejection
from ledger.node_cert import key_pem
from node.keyfile import FILE_BYTES_MAX, read_node_key

SEED = bytes(range(32))


def secret(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def refusal(key_file: Path, passphrase_file: Path | None = None) -> str:
    with pytest.raises(Rejection) as caught:
        read_node_key(key_file, passphrase_file)
    assert caught.value.code == "bad_key_file"
    return caught.value.detail


def test_a_key_of_mode_0600_is_read(tmp_path: Path) -> None:
    assert read_node_key(secret(tmp_path / "node.key", key_pem(SEED, None)), None) == SEED
    assert read_node_key(secret(tmp_path / "node.key", key_pem(SEED, None), 0o400), None) == SEED


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_an_encrypted_key_opens_with_its_passphrase_file(tmp_path: Path, ending: bytes) -> None:
    key = secret(tmp_path / "node.key", key_pem(SEED, b"correct horse"))
    passphrase = secret(tmp_path / "node.passphrase", b"correct horse" + ending)
    assert read_node_key(key, passphrase) == SEED


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o601])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    key = secret(tmp_path / "node.key", key_pem(SEED, None), mode)
    detail = refusal(key)
    assert f"chmod 600 {key}" in detail
    assert f"{mode:04o}" in detail


def test_a_passphrase_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = secret(tmp_path / "node.key", key_pem(SEED, b"correct horse"))
    passphrase = secret(tmp_path / "node.passphrase", b"correct horse", 0o644)
    assert f"chmod 600 {passphrase}" in refusal(key, passphrase)


def test_a_wrong_missing_or_needless_passphrase_is_refused_without_showing_it(tmp_path: Path) -> None:
    locked = secret(tmp_path / "locked.key", key_pem(SEED, b"correct horse"))
    plain = secret(tmp_path / "plain.key", key_pem(SEED, None))
    wrong = secret(tmp_path / "wrong.passphrase", b"battery staple")
    empty = secret(tmp_path / "empty.passphrase", b"\n")
    for detail in (refusal(locked, wrong), refusal(locked), refusal(plain, wrong)):
        assert "wrong passphrase" in detail
        assert "battery" not in detail
    assert "empty" in refusal(locked, empty)


def test_what_is_no_key_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.key")
    assert "not a regular file" in refusal(tmp_path)
    assert "not a PEM key" in refusal(secret(tmp_path / "noise.key", b"noise"))
    assert "longer than" in refusal(secret(tmp_path / "long.key", b"x" * (FILE_BYTES_MAX + 1)))
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    assert "not a regular file" in refusal(tmp_path / "pipe.key")
