"""A member's keys in one file: argon2id over a passphrase, XChaCha20-Poly1305 over the seeds.

The file is JSON {format, kdf {algorithm, memory_bytes, operations, salt}, nonce, ciphertext}, binary fields in
base64, mode 0600. The canonical encoding of {format, kdf} is additional data, so that no field can be altered.
Inside is the canonical map {account, current, format, label, seeds}: every seed the account ever had, oldest first,
because records sealed to a retired key are opened by it; `current` is the place of the one that signs.

Rotation has two phases, so that a crash never loses a key: `prepare_rotation` writes the new seed before anything is
sent; `adopt` makes it current once the ledger names it. Python cannot wipe memory: an open wallet's seeds stay in the
process until it ends.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_pwhash_alg,
    crypto_pwhash_ALG_ARGON2ID13,
)
from nacl.exceptions import CryptoError

from ledger.contracts.identity import possession_proof
from ledger.encoding import convert, decode_as, encode
from ledger.errors import Rejection
from ledger.keys import AccountId, Bytes32, SigningKey, account_id, sha256, tag

SUBJECT = tag("subject")
SUBJECT_SALT = tag("subject-salt")
FORMAT: Literal[1] = 1
FILE_BYTES_MAX = 64 * 1024
PASSPHRASE_BYTES_MAX = 1024
SEEDS_MAX = 256
LABEL_CHARACTERS_MAX = 128
_SALT_BYTES = 16
_NONCE_BYTES = 24
_KEY_BYTES = 32

_T = TypeVar("_T", bound=msgspec.Struct)


class Cost(msgspec.Struct, frozen=True):
    """What one guess at the passphrase costs: passes over the memory, and its bytes (argon2id)."""

    memory_bytes: Annotated[int, Meta(ge=8 * 1024, le=1024**3)]
    operations: Annotated[int, Meta(ge=1, le=32)]


# About 0.7 s and 256 MiB: a person opens a wallet a few times a day.
COST_DEFAULT = Cost(memory_bytes=256 * 1024**2, operations=3)
# Next to nothing: for development networks and tests, whose passphrases lie beside the wallets.
COST_DEVELOPMENT = Cost(memory_bytes=8 * 1024, operations=1)


class _Kdf(Cost, frozen=True, forbid_unknown_fields=True):
    algorithm: Literal["argon2id"]
    salt: Annotated[bytes, Meta(min_length=_SALT_BYTES, max_length=_SALT_BYTES)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    kdf: _Kdf
    nonce: Annotated[bytes, Meta(min_length=_NONCE_BYTES, max_length=_NONCE_BYTES)]
    ciphertext: bytes


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    account: AccountId
    current: Annotated[int, Meta(ge=0, lt=SEEDS_MAX)]
    format: Literal[1]
    label: Annotated[str, Meta(max_length=LABEL_CHARACTERS_MAX)]
    seeds: Annotated[list[Bytes32], Meta(min_length=1, max_length=SEEDS_MAX)]


class Wallet:
    """An open wallet. Every change is in the file, synced, before the call that made it returns."""

    __slots__ = ("_content", "_kdf", "_key", "_stored", "path", "signing_key")

    path: Path
    signing_key: SigningKey

    def __init__(self, path: Path, content: _Content, kdf: _Kdf, key: bytes, stored: bytes | None) -> None:
        """Use `create` or `open`. `stored` is the file's bytes as last seen, None if there must be none."""
        self.path = path
        self._kdf = kdf
        self._key = key
        self._stored = stored
        self._set(content)

    @classmethod
    def create(cls, path: str | Path, passphrase: bytes, *, cost: Cost = COST_DEFAULT, label: str = "") -> "Wallet":
        """A new account with a random key, in a new file.

        Raises Rejection: "wallet_exists", "bad_passphrase" (empty, or longer than PASSPHRASE_BYTES_MAX),
        "bad_structure" for a cost out of bounds or a label that is too long.
        """
        seed = secrets.token_bytes(32)
        kdf = _Kdf(
            algorithm="argon2id",
            memory_bytes=cost.memory_bytes,
            operations=cost.operations,
            salt=secrets.token_bytes(_SALT_BYTES),
        )
        content = _Content(account_id(SigningKey(seed).public), 0, FORMAT, label, [seed])
        wallet = cls(Path(path), _in_bounds(content), kdf, _derive(passphrase, _in_bounds(kdf)), None)
        wallet._save(content)
        return wallet

    @classmethod
    def open(cls, path: str | Path, passphrase: bytes) -> "Wallet":
        """Read and decrypt a wallet file.

        Raises Rejection: "no_such_file", "open_permissions" (others may read it), "bad_wallet", "wrong_passphrase".
        The cost is checked against its bounds before any work is done.
        """
        stored = read_private(path, FILE_BYTES_MAX)
        try:
            file = msgspec.json.decode(stored, type=_File)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Rejection("bad_wallet", f"{path}: {error}") from None
        key = _derive(passphrase, file.kdf)
        try:
            data = crypto_aead_xchacha20poly1305_ietf_decrypt(file.ciphertext, _header(file.kdf), file.nonce, key)
        except (CryptoError, ValueError):
            raise Rejection("wrong_passphrase", f"{path}: or the file was altered") from None
        content = decode_as(_Content, data, FILE_BYTES_MAX)
        first = SigningKey(content.seeds[0]).public
        if content.current >= len(content.seeds) or content.account != account_id(first):
            raise Rejection("bad_wallet", f"{path}: the account is not that of its first key")
        return cls(Path(path), content, file.kdf, key, stored)

    @property
    def account(self) -> bytes:
        """The 32-byte account id. It never changes."""
        return self._content.account

    @property
    def public_key(self) -> bytes:
        """The 32-byte key that signs now."""
        return self.signing_key.public

    @property
    def label(self) -> str:
        """What the owner calls this wallet. Never leaves the file."""
        return self._content.label

    @property
    def seeds(self) -> list[bytes]:
        """Every seed, newest first, to open what was sealed to any of the account's keys."""
        return self._content.seeds[::-1]

    def possession_proof(self, chain: bytes, admin: bytes) -> bytes:
        """The 64-byte proof that the admin's account (32 bytes) needs to register this wallet's key on `chain`."""
        return possession_proof(self.signing_key, chain, admin)

    def subject_handle(self, organisation: str) -> bytes:
        """The 32-byte name under which this account's records stand at one organisation.

        It is salted from the first seed, so that only this wallet ties the handles of different organisations
        together; who learns one handle learns nothing of another. Rotation does not change it.
        """
        salt = sha256(SUBJECT_SALT, self._content.seeds[0], organisation.encode("utf-8"))
        return sha256(SUBJECT, self.account, salt)

    def prepare_rotation(self) -> SigningKey:
        """The next key, already in the file. The same one every time until it is adopted.

        Raises Rejection("too_many_keys") at SEEDS_MAX; and see `adopt` for "wallet_changed".
        """
        content = self._content
        if content.current == len(content.seeds) - 1:
            if len(content.seeds) == SEEDS_MAX:
                raise Rejection("too_many_keys", f"a wallet holds at most {SEEDS_MAX} keys")
            content = msgspec.structs.replace(content, seeds=[*content.seeds, secrets.token_bytes(32)])
            self._save(content)
        return SigningKey(content.seeds[-1])

    def adopt(self, public_key: bytes) -> None:
        """Sign with this key from now on: the one that the ledger names as the account's current key.

        Harmless to repeat, and after a crash it finishes what `prepare_rotation` began. Raises Rejection:
        "unknown_key" if the wallet does not hold it, "wallet_changed" if another process wrote the file meanwhile.
        """
        keys = [SigningKey(seed).public for seed in self._content.seeds]
        if public_key not in keys:
            raise Rejection("unknown_key", "the wallet does not hold the account's current key")
        if keys.index(public_key) != self._content.current:
            self._save(msgspec.structs.replace(self._content, current=keys.index(public_key)))

    def _set(self, content: _Content) -> None:
        self._content = content
        self.signing_key = SigningKey(content.seeds[content.current])

    def _save(self, content: _Content) -> None:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        ciphertext = crypto_aead_xchacha20poly1305_ietf_encrypt(encode(content), _header(self._kdf), nonce, self._key)
        data = msgspec.json.format(msgspec.json.encode(_File(FORMAT, self._kdf, nonce, ciphertext))) + b"\n"
        with _locked(self.path.parent):
            if self._stored is None and os.path.lexists(self.path):
                raise Rejection("wallet_exists", f"{self.path}: will not be overwritten")
            if self._stored is not None and read_private(self.path, FILE_BYTES_MAX) != self._stored:
                raise Rejection("wallet_changed", f"{self.path}: another process wrote it; open it again")
            _replace(self.path, data)
        self._stored = data
        self._set(content)

    def __repr__(self) -> str:
        return f"Wallet(account={self.account.hex()})"


def read_passphrase(path: str | Path) -> bytes:
    """The passphrase in a private file: its bytes without one trailing line end.

    Raises Rejection: "no_such_file", "open_permissions", "bad_passphrase".
    """
    data = read_private(path, PASSPHRASE_BYTES_MAX + 2)
    passphrase = data.removesuffix(b"\n").removesuffix(b"\r")
    _require_passphrase(passphrase)
    return passphrase


def read_private(path: str | Path, bytes_max: int) -> bytes:
    """A regular file that only its owner may read or write, whole.

    Raises Rejection: "no_such_file", "open_permissions", "too_large".
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Rejection("no_such_file", f"{path}: {error.strerror}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise Rejection("no_such_file", f"{path}: not a regular file")
        if mode & 0o077:
            raise Rejection("open_permissions", f"{path}: others may read it; run: chmod 600 {path}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(bytes_max + 1)
    finally:
        os.close(descriptor)
    if len(data) > bytes_max:
        raise Rejection("too_large", f"{path}: at most {bytes_max} bytes")
    return data


def _derive(passphrase: bytes, kdf: _Kdf) -> bytes:
    _require_passphrase(passphrase)
    key: bytes = crypto_pwhash_alg(
        _KEY_BYTES, passphrase, kdf.salt, kdf.operations, kdf.memory_bytes, crypto_pwhash_ALG_ARGON2ID13
    )
    return key


def _require_passphrase(passphrase: bytes) -> None:
    if not 1 <= len(passphrase) <= PASSPHRASE_BYTES_MAX:
        raise Rejection("bad_passphrase", f"a passphrase has 1 to {PASSPHRASE_BYTES_MAX} bytes")


def _header(kdf: _Kdf) -> bytes:
    return encode({"format": FORMAT, "kdf": msgspec.to_builtins(kdf, builtin_types=(bytes,))})


def _in_bounds(value: _T) -> _T:
    """A struct that was built here, held to the same bounds as one that was read."""
    return convert(type(value), msgspec.to_builtins(value, builtin_types=(bytes,)))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer of wallets in a folder at a time, across processes; the lock dies with its process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, data: bytes) -> None:
    """The file holds all of `data` or what it held before, whatever fails; on return it survives power loss."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
