"""Who may sign: organisations, their members, and the keys of each member, one at a time.

A patient is an account like any other, with a random key: nothing here names a person.

state key                          value
identity/organisation/<id>         Organisation
identity/account/<account, hex>    Account
identity/key/<public key, hex>     the account that the key belongs or once belonged to

action            signed by                              refused, in the order of the checks
member.register   an active admin; the new member joins  revoked not_admin bad_key key_in_use bad_proof
                  the admin's organisation               too_many_admins
member.rotate     the account itself, or an active       no_such_account not_allowed stale_version revoked
                  admin of its organisation              bad_key key_in_use bad_proof
member.revoke     an active admin of its organisation    no_such_account not_allowed stale_version revoked
                                                         last_admin

Rules behind the table: an account is named by the hash of its first key, for ever; a key serves once, for
one account; a new key comes with a proof that its holder has it, so that nobody registers another's key; each
change names the version it replaces; an organisation always keeps an active admin.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ledger.contracts.context import Context, Read, read_as
from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.genesis import Genesis
from ledger.keys import (
    AccountId,
    PublicKey,
    Signature,
    SigningKey,
    account_id,
    is_valid_key,
    sha256,
    tag,
    verify,
)

KEY_POSSESSION = tag("key-possession")
FORMAT = 1
ADMINS_MAX = 64

Role = Literal["admin", "auditor", "clinician", "patient", "payer"]
Version = Annotated[int, Meta(ge=1, le=2**53)]


class Organisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`admins` are the accounts of the active admins, ascending; at least 1, at most ADMINS_MAX."""

    admins: list[AccountId]
    format: int
    kind: str
    name: str


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`key` is the one key that signs now; `version` is 1 at first and grows by 1 at every change."""

    format: int
    key: PublicKey
    organisation: str
    role: Role
    status: Literal["active", "revoked"]
    version: Version


class Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="member.register"):
    """Make a member of the signer's organisation. `proof` is a `possession_proof` made out to the signer."""

    key: PublicKey
    proof: Signature
    role: Role


class Rotate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="member.rotate"):
    """Replace an account's key. `proof` is a `possession_proof` made out to `account`; `version` is the one
    replaced."""

    account: AccountId
    new_key: PublicKey
    proof: Signature
    version: Version


class Revoke(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="member.revoke"):
    """End an account, for ever. `version` is the one replaced."""

    account: AccountId
    version: Version


def organisation_path(organisation: str) -> str:
    return f"identity/organisation/{organisation}"


def account_path(account: bytes) -> str:
    return f"identity/account/{account.hex()}"


def key_path(public_key: bytes) -> str:
    return f"identity/key/{public_key.hex()}"


def possession_proof(key: SigningKey, chain: bytes, account: bytes) -> bytes:
    """The 64-byte proof that whoever hands over `key.public` holds its private half.

    `account` is whom the proof is made out to, so that nobody else can use it: the admin's account when
    registering, the key's own account when rotating.
    """
    return key.sign(KEY_POSSESSION, _possession_digest(chain, account, key.public))


def check_key(read: Read, account: bytes, public_key: bytes) -> Account:
    """The account, if `public_key` signs for it now. Rejection: unregistered, wrong_signer or revoked."""
    found = read_as(read, Account, account_path(account))
    if found is None:
        raise Rejection("unregistered", "no such account")
    if found.key != public_key:
        raise Rejection("wrong_signer", "the key is not the account's current key")
    return _active(found)


def check_new_keys(actions: Iterable[object]) -> None:
    """What needs no state: Rejection("bad_key") if an action brings a key that no account may have."""
    for action in actions:
        if isinstance(action, Register):
            require_valid(action.key)
        elif isinstance(action, Rotate):
            require_valid(action.new_key)


def active_admin(context: Context) -> Account:
    """The signing account, or Rejection("not_admin") unless it is an admin's, or as `signer`."""
    account = signer(context)
    if account.role != "admin":
        raise Rejection("not_admin", "only an admin may do this")
    return account


def signer(context: Context) -> Account:
    """The signing account. Rejection("revoked") if an earlier action of the same transaction ended it."""
    return _active(_account(context, context.by))


def genesis_state(genesis: Genesis) -> dict[str, bytes]:
    """The organisations and their first admins."""
    state: dict[str, bytes] = {}
    for organisation in genesis.organisations:
        admins = sorted(account_id(key) for key in organisation.admin_keys)
        state[organisation_path(organisation.id)] = encode(
            Organisation(admins=admins, format=FORMAT, kind=organisation.kind, name=organisation.name)
        )
        for key in organisation.admin_keys:
            account = Account(FORMAT, key, organisation.id, role="admin", status="active", version=1)
            state[account_path(account_id(key))] = encode(account)
            state[key_path(key)] = encode(account_id(key))
    return state


def found(context: Context, organisation: str, kind: str, name: str, admin_keys: Sequence[bytes]) -> None:
    """A new organisation and its first admins. Keys and id were checked."""
    admins = sorted(account_id(key) for key in admin_keys)
    context.put(organisation_path(organisation), Organisation(admins=admins, format=FORMAT, kind=kind, name=name))
    for key in admin_keys:
        account = Account(FORMAT, key, organisation, role="admin", status="active", version=1)
        context.put(account_path(account_id(key)), account)
        context.put(key_path(key), account_id(key))


def require_new_key(context: Context, public_key: bytes, account: bytes, proof: bytes) -> None:
    """A key enters only if it is a safe point, never served before, and its holder says so, by a `possession_proof`
    made out to `account`. Rejection: bad_key, key_in_use or bad_proof."""
    require_valid(public_key)
    if context.read(key_path(public_key)) is not None:
        raise Rejection("key_in_use", "a key serves one account, once")
    if not verify(public_key, KEY_POSSESSION, _possession_digest(context.chain, account, public_key), proof):
        raise Rejection("bad_proof", "the proof of possession does not verify under the new key")


def register(context: Context, action: Register) -> None:
    admin = active_admin(context)
    require_new_key(context, action.key, context.by, action.proof)
    account = account_id(action.key)
    if action.role == "admin":
        _add_admin(context, admin.organisation, account)
    context.put(
        account_path(account),
        Account(FORMAT, action.key, admin.organisation, role=action.role, status="active", version=1),
    )
    context.put(key_path(action.key), account)


def rotate(context: Context, action: Rotate) -> None:
    account = _account(context, action.account)
    if context.by != action.account:
        _require_admin_of(context, account.organisation)
    _require_version(account, action.version)
    _active(account)
    require_new_key(context, action.new_key, action.account, action.proof)
    changed = msgspec.structs.replace(account, key=action.new_key, version=account.version + 1)
    context.put(account_path(action.account), changed)
    context.put(key_path(action.new_key), action.account)


def revoke(context: Context, action: Revoke) -> None:
    account = _account(context, action.account)
    _require_admin_of(context, account.organisation)
    _require_version(account, action.version)
    _active(account)
    if account.role == "admin":
        _remove_admin(context, account.organisation, action.account)
    changed = msgspec.structs.replace(account, status="revoked", version=account.version + 1)
    context.put(account_path(action.account), changed)


def _possession_digest(chain: bytes, account: bytes, public_key: bytes) -> bytes:
    return sha256(encode({"account": account, "chain": chain, "key": public_key}))


def _account(context: Context, account: bytes) -> Account:
    found = context.get_as(Account, account_path(account))
    if found is None:
        raise Rejection("no_such_account", "no such account")
    return found


def _active(account: Account) -> Account:
    if account.status != "active":
        raise Rejection("revoked", "the account is revoked")
    return account


def _require_version(account: Account, version: int) -> None:
    if account.version != version:
        raise Rejection("stale_version", f"the account is at version {account.version}, not {version}")


def _require_admin_of(context: Context, organisation: str) -> None:
    by = signer(context)
    if by.role != "admin" or by.organisation != organisation:
        raise Rejection("not_allowed", "only an admin of the account's organisation may do this")


def require_valid(public_key: bytes) -> None:
    """Rejection("bad_key") for a key that no account may have."""
    if not is_valid_key(public_key):
        raise Rejection("bad_key", "the key is not a valid point of the prime-order group")


def _organisation(context: Context, organisation: str) -> Organisation:
    found = context.get_as(Organisation, organisation_path(organisation))
    assert found is not None, "every account's organisation was founded"
    return found


def _add_admin(context: Context, organisation: str, account: bytes) -> None:
    found = _organisation(context, organisation)
    if len(found.admins) >= ADMINS_MAX:
        raise Rejection("too_many_admins", f"an organisation has at most {ADMINS_MAX} admins")
    admins = list(found.admins)
    insort(admins, account)
    context.put(organisation_path(organisation), msgspec.structs.replace(found, admins=admins))


def _remove_admin(context: Context, organisation: str, account: bytes) -> None:
    found = _organisation(context, organisation)
    if found.admins == [account]:
        raise Rejection("last_admin", "an organisation keeps one active admin")
    admins = [admin for admin in found.admins if admin != account]
    context.put(organisation_path(organisation), msgspec.structs.replace(found, admins=admins))
