"""Wallet files: what is in them, who may read them, and that no crash loses a key."""

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carequorum import wallet as wallet_module
from carequorum.wallet import COST_DEVELOPMENT, SEEDS_MAX, Cost, Wallet, read_passphrase, read_private
from ledger.contracts.identity import KEY_POSSESSION
from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.keys import account_id, sha256, verify

PASSPHRASE = b"correct horse"
CHAIN, ADMIN = b"c" * 32, b"a" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "doctor.wallet"


def create(path: Path) -> Wallet:
    return Wallet.create(path, PASSPHRASE, cost=COST_DEVELOPMENT, label="Dr. Lee")


def reopen(path: Path) -> Wallet:
    return Wallet.open(path, PASSPHRASE)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(Rejection) as caught:
        action()
    return caught.value.code


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    fields = json.loads(path.read_bytes())
    change(fields)
    path.write_text(json.dumps(fields))


def test_what_was_created_opens_again(path: Path) -> None:
    created, opened = create(path), reopen(path)
    assert opened.account == created.account == account_id(created.public_key)
    assert (opened.public_key, opened.seeds, opened.label) == (created.public_key, created.seeds, "Dr. Lee")


def test_two_wallets_have_nothing_in_common(path: Path) -> None:
    first, second = create(path), create(path.with_name("other.wallet"))
    assert first.account != second.account
    one, other = (json.loads(each.path.read_bytes()) for each in (first, second))
    assert one["kdf"]["salt"] != other["kdf"]["salt"]
    assert one["nonce"] != other["nonce"]


def test_the_file_is_private_and_shows_neither_label_nor_account_nor_seed(path: Path) -> None:
    wallet = create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    data = path.read_bytes()
    for secret in (wallet.account, wallet.public_key, *wallet.seeds, b"Dr. Lee", PASSPHRASE):
        assert not any(form in data for form in (secret, secret.hex().encode(), base64.b64encode(secret)))
    assert os.listdir(path.parent) == [path.name]
    assert not any(seed.hex() in repr(wallet) + repr(wallet.signing_key) for seed in wallet.seeds)


def test_a_wallet_is_never_overwritten(path: Path) -> None:
    before = create(path).path.read_bytes()
    assert refusal(lambda: create(path)) == "wallet_exists"
    assert path.read_bytes() == before


def test_a_dangling_link_is_not_written_through(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    assert refusal(lambda: create(path)) == "wallet_exists"


def test_a_wrong_passphrase_opens_nothing(path: Path) -> None:
    create(path)
    assert refusal(lambda: Wallet.open(path, b"wrong horse")) == "wrong_passphrase"


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1_025])
def test_a_passphrase_has_a_length(path: Path, passphrase: bytes) -> None:
    assert refusal(lambda: Wallet.create(path, passphrase, cost=COST_DEVELOPMENT)) == "bad_passphrase"
    assert not path.exists()


@pytest.mark.parametrize("cost", [Cost(4 * 1024, 1), Cost(2 * 1024**3, 1), Cost(8 * 1024, 0), Cost(8 * 1024, 33)])
def test_a_cost_out_of_bounds_is_refused_when_made_and_when_read(
    path: Path, cost: Cost, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(lambda: Wallet.create(path, PASSPHRASE, cost=cost)) == "bad_structure"
    create(path)
    rewrite(path, lambda fields: fields["kdf"].update(memory_bytes=cost.memory_bytes, operations=cost.operations))
    monkeypatch.setattr(wallet_module, "crypto_pwhash_alg", lambda *_: pytest.fail("work was done for it"))
    assert refusal(lambda: reopen(path)) == "bad_wallet"


def test_the_cost_is_the_files_own(path: Path) -> None:
    Wallet.create(path, PASSPHRASE, cost=Cost(memory_bytes=64 * 1024, operations=2))
    fields = json.loads(path.read_bytes())
    assert (fields["kdf"]["memory_bytes"], fields["kdf"]["operations"]) == (64 * 1024, 2)
    assert reopen(path).path == path


def test_a_label_is_bounded(path: Path) -> None:
    assert refusal(lambda: Wallet.create(path, PASSPHRASE, cost=COST_DEVELOPMENT, label="x" * 129)) == "bad_structure"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda fields: fields["kdf"].update(operations=2), "wrong_passphrase"),
        (lambda fields: fields["kdf"].update(memory_bytes=16 * 1024), "wrong_passphrase"),
        (lambda fields: fields["kdf"].update(algorithm="argon2i"), "bad_wallet"),
        (lambda fields: fields["kdf"].update(salt=base64.b64encode(b"s" * 16).decode()), "wrong_passphrase"),
        (lambda fields: fields["kdf"].update(salt=base64.b64encode(b"s" * 15).decode()), "bad_wallet"),
        (lambda fields: fields["kdf"].update(extra=1), "bad_wallet"),
        (lambda fields: fields.update(format=2), "bad_wallet"),
        (lambda fields: fields.update(nonce=base64.b64encode(b"n" * 24).decode()), "wrong_passphrase"),
        (lambda fields: fields.update(ciphertext=fields["ciphertext"][4:]), "wrong_passphrase"),
        (lambda fields: fields.update(ciphertext=""), "wrong_passphrase"),
        (lambda fields: fields.pop("nonce"), "bad_wallet"),
    ],
)
def test_an_altered_file_does_not_open(path: Path, change: Callable[[dict[str, Any]], None], code: str) -> None:
    create(path)
    rewrite(path, change)
    assert refusal(lambda: reopen(path)) == code


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"x" * 65_537])
def test_what_is_no_wallet_is_refused(path: Path, data: bytes) -> None:
    create(path)
    path.write_bytes(data)
    assert refusal(lambda: reopen(path)) in {"bad_wallet", "too_large"}


def test_content_that_contradicts_itself_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its owner can seal such content: the check is against our own mistakes."""
    wallet = create(path)
    good = {"account": wallet.account, "current": 0, "format": 1, "label": "", "seeds": wallet.seeds}
    contradictions: list[dict[str, object]] = [
        {"account": b"x" * 32},
        {"current": 1},
        {"seeds": []},
        {"format": 2},
        {"extra": 1},
    ]
    for bad in contradictions:
        forged = encode(good | bad)
        monkeypatch.setattr(
            wallet_module, "encode", lambda value, forged=forged: encode(value) if type(value) is dict else forged
        )
        wallet._save(wallet._content)
        monkeypatch.undo()
        assert refusal(lambda: reopen(path)) in {"bad_wallet", "bad_structure"}


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o602, 0o610])
def test_a_file_that_others_may_open_is_refused(path: Path, mode: int) -> None:
    create(path)
    path.chmod(mode)
    assert refusal(lambda: reopen(path)) == "open_permissions"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("missing", "pipe", "."):
        with pytest.raises(Rejection, match="no_such_file"):
            read_private(tmp_path / name, 100)


def test_a_passphrase_file_gives_its_line(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    for data, wanted in ((b"a b\n", b"a b"), (b"a b\r\n", b"a b"), (b"a b", b"a b"), (b" a\n\n", b" a\n")):
        file.write_bytes(data)
        file.chmod(0o600)
        assert read_passphrase(file) == wanted
    file.write_bytes(b"\n")
    assert refusal(lambda: read_passphrase(file)) == "bad_passphrase"
    file.chmod(0o644)
    assert refusal(lambda: read_passphrase(file)) == "open_permissions"


def test_a_possession_proof_is_for_one_chain_and_one_admin(path: Path) -> None:
    wallet = create(path)
    proof = wallet.possession_proof(CHAIN, ADMIN)
    digest = sha256(encode({"account": ADMIN, "chain": CHAIN, "key": wallet.public_key}))
    assert verify(wallet.public_key, KEY_POSSESSION, digest, proof)
    assert proof != wallet.possession_proof(ADMIN, CHAIN)


def test_subject_handles_differ_by_organisation_and_outlive_rotation(path: Path) -> None:
    wallet = create(path)
    handles = [wallet.subject_handle(name) for name in ("north", "south")]
    assert len(set(handles)) == 2
    assert all(len(handle) == 32 for handle in handles)
    wallet.adopt(wallet.prepare_rotation().public)
    assert [reopen(path).subject_handle(name) for name in ("north", "south")] == handles


def test_rotation_keeps_the_account_and_every_key(path: Path) -> None:
    wallet = create(path)
    account, first = wallet.account, wallet.seeds
    key = wallet.prepare_rotation()
    assert wallet.public_key != key.public
    wallet.adopt(key.public)
    assert (wallet.account, wallet.public_key) == (account, key.public)
    assert wallet.seeds[1:] == first
    again = reopen(path)
    assert (again.account, again.public_key, again.seeds) == (account, key.public, wallet.seeds)


def test_a_prepared_key_is_in_the_file_before_anything_is_sent_and_stays_the_same(path: Path) -> None:
    key = create(path).prepare_rotation()
    # The process ends here: with the ledger's word the next one goes on, either way.
    after_crash = reopen(path)
    assert after_crash.prepare_rotation().public == key.public
    after_crash.adopt(key.public)
    assert reopen(path).public_key == key.public


def test_a_prepared_key_that_the_ledger_never_took_does_not_sign(path: Path) -> None:
    wallet = create(path)
    first = wallet.public_key
    wallet.prepare_rotation()
    wallet.adopt(first)
    assert reopen(path).public_key == first


def test_an_unknown_key_is_not_adopted(path: Path) -> None:
    wallet = create(path)
    before = path.read_bytes()
    assert refusal(lambda: wallet.adopt(b"x" * 32)) == "unknown_key"
    assert path.read_bytes() == before


def test_a_wallet_that_another_process_changed_is_not_overwritten(path: Path) -> None:
    here, there = create(path), reopen(path)
    theirs = there.prepare_rotation().public
    assert refusal(here.prepare_rotation) == "wallet_changed"
    assert reopen(path).prepare_rotation().public == theirs


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_file_and_the_wallet_as_they_were(
    path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wallet = create(path)
    before, key = path.read_bytes(), wallet.public_key

    def fail(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="no space left"):
        wallet.prepare_rotation()
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    assert (path.read_bytes(), wallet.public_key) == (before, key)
    wallet.adopt(wallet.prepare_rotation().public)
    assert reopen(path).public_key == wallet.public_key != key


def test_the_number_of_keys_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wallet = create(path)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for _ in range(SEEDS_MAX - 1):
        wallet.adopt(wallet.prepare_rotation().public)
    assert refusal(wallet.prepare_rotation) == "too_many_keys"
    assert reopen(path).seeds == wallet.seeds
