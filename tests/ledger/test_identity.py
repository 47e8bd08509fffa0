"""Members and their keys: who may register, rotate and revoke whom, told as what each block answers."""

import pytest

from ledger.contracts import identity
from ledger.contracts.context import read_as
from ledger.errors import Rejection
from ledger.transaction import Transaction
from tests.ledger.founding import (
    CHAIN,
    Ledger,
    account_of,
    addition,
    make_genesis,
    registration,
    revocation,
    rotation,
    sign,
    signing_key,
)

# Points of small order, under which a signature can be made without any private key; then encodings that are
# not canonical.
BAD_KEYS = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    b"\xff" * 32,
]


@pytest.fixture
def ledger() -> Ledger:
    """North has a doctor and a patient, south has a payer."""
    ledger = Ledger()
    codes = ledger.run(
        sign([registration("doctor", "clinician"), registration("patient", "patient")], by="north-admin"),
        sign([registration("payer", "payer", admin="south-admin")], by="south-admin"),
    )
    assert codes == ["ok", "ok"]
    return ledger


def account(ledger: Ledger, name: str) -> identity.Account:
    found = read_as(ledger.get, identity.Account, identity.account_path(account_of(name)))
    assert found is not None
    return found


def admins(ledger: Ledger, organisation: str) -> list[bytes]:
    found = read_as(ledger.get, identity.Organisation, identity.organisation_path(organisation))
    assert found is not None
    return found.admins


def refused(ledger: Ledger, transaction: Transaction) -> str:
    """The code of a block's only transaction, which leaves no trace in the state."""
    before = dict(ledger.state)
    (code,) = ledger.run(transaction)
    assert ledger.state == before
    return code


class TestRegister:
    def test_the_member_joins_the_admin_s_organisation(self, ledger: Ledger) -> None:
        assert account(ledger, "doctor") == identity.Account(
            1, signing_key("doctor").public, "north", "clinician", "active", 1
        )
        assert account(ledger, "payer").organisation == "south"
        assert identity.key_path(signing_key("doctor").public) in ledger.state

    @pytest.mark.parametrize("role", ["admin", "auditor", "clinician", "patient", "payer"])
    def test_each_role(self, ledger: Ledger, role: identity.Role) -> None:
        assert ledger.run(sign([registration("new", role)], by="north-admin")) == ["ok"]
        assert account(ledger, "new").role == role
        assert (account_of("new") in admins(ledger, "north")) == (role == "admin")

    def test_only_an_admin_registers(self, ledger: Ledger) -> None:
        assert refused(ledger, sign([registration("new", "patient", admin="doctor")], by="doctor")) == "not_admin"

    def test_a_new_admin_registers_too(self, ledger: Ledger) -> None:
        assert ledger.run(
            sign([registration("second", "admin")], by="north-admin"),
            sign([registration("new", "patient", admin="second")], by="second"),
        ) == ["ok", "ok"]
        assert admins(ledger, "north") == sorted([account_of("north-admin"), account_of("second")])

    @pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: key.hex()[:8])
    def test_a_key_that_is_no_safe_point(self, ledger: Ledger, key: bytes) -> None:
        action = identity.Register(key, bytes(64), "patient")
        assert refused(ledger, sign([action], by="north-admin")) == "bad_key"

    def test_a_key_serves_once(self, ledger: Ledger) -> None:
        assert refused(ledger, sign([registration("doctor", "clinician")], by="north-admin")) == "key_in_use"
        taken = registration("doctor", "patient", admin="south-admin")
        assert refused(ledger, sign([taken], by="south-admin")) == "key_in_use"
        assert ledger.run(sign([rotation("doctor", "doctor-2", 1)], by="doctor")) == ["ok"]
        for name in ("doctor", "doctor-2"):
            assert refused(ledger, sign([registration(name, "patient")], by="north-admin")) == "key_in_use"

    def test_a_proof_is_made_out_to_one_admin_on_one_network(self, ledger: Ledger) -> None:
        key = signing_key("new")
        other_chain = make_genesis("another").chain_id()
        proofs = [
            identity.possession_proof(key, CHAIN, account_of("south-admin")),
            identity.possession_proof(key, other_chain, account_of("north-admin")),
            identity.possession_proof(signing_key("other"), CHAIN, account_of("north-admin")),
            bytes(64),
        ]
        for proof in proofs:
            action = identity.Register(key.public, proof, "patient")
            assert refused(ledger, sign([action], by="north-admin")) == "bad_proof"

    def test_admins_are_bounded(self, ledger: Ledger) -> None:
        many = [registration(f"admin-{index}", "admin") for index in range(identity.ADMINS_MAX - 1)]
        assert ledger.run(sign(many, by="north-admin")) == ["ok"]
        assert refused(ledger, sign([registration("one-more", "admin")], by="north-admin")) == "too_many_admins"
        assert ledger.run(sign([revocation("admin-0", 1), registration("one-more", "admin")], by="north-admin")) == [
            "ok"
        ]
        assert len(admins(ledger, "north")) == identity.ADMINS_MAX
        assert admins(ledger, "north") == sorted(set(admins(ledger, "north")))


class TestRotate:
    def test_by_the_account_itself(self, ledger: Ledger) -> None:
        assert ledger.run(sign([rotation("doctor", "doctor-2", 1)], by="doctor")) == ["ok"]
        assert account(ledger, "doctor") == identity.Account(
            1, signing_key("doctor-2").public, "north", "clinician", "active", 2
        )
        assert ledger.run(
            sign([addition("r")], by="doctor", bodies=[b"x"]),
            sign([addition("r")], by="doctor", key="doctor-2", bodies=[b"x"]),
        ) == ["wrong_signer", "ok"]

    def test_by_an_admin_of_its_organisation(self, ledger: Ledger) -> None:
        assert ledger.run(sign([rotation("patient", "patient-2", 1)], by="north-admin")) == ["ok"]
        assert account(ledger, "patient").key == signing_key("patient-2").public

    @pytest.mark.parametrize("by", ["south-admin", "doctor", "payer"])
    def test_by_nobody_else(self, ledger: Ledger, by: str) -> None:
        assert refused(ledger, sign([rotation("patient", "patient-2", 1)], by=by)) == "not_allowed"

    def test_no_such_account(self, ledger: Ledger) -> None:
        assert refused(ledger, sign([rotation("nobody", "n-2", 1)], by="north-admin")) == "no_such_account"

    @pytest.mark.parametrize("version", [2, 2**53])
    def test_names_the_version_it_replaces(self, ledger: Ledger, version: int) -> None:
        assert refused(ledger, sign([rotation("doctor", "doctor-2", version)], by="doctor")) == "stale_version"

    def test_two_rotations_of_one_version(self, ledger: Ledger) -> None:
        assert ledger.run(
            sign([rotation("patient", "patient-2", 1)], by="north-admin"),
            sign([rotation("patient", "patient-3", 1)], by="north-admin"),
        ) == ["ok", "stale_version"]

    def test_a_revoked_account_stays_as_it_is(self, ledger: Ledger) -> None:
        assert ledger.run(sign([revocation("doctor", 1)], by="north-admin")) == ["ok"]
        assert refused(ledger, sign([rotation("doctor", "doctor-2", 2)], by="north-admin")) == "revoked"

    @pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: key.hex()[:8])
    def test_a_key_that_is_no_safe_point(self, ledger: Ledger, key: bytes) -> None:
        action = identity.Rotate(account_of("doctor"), key, bytes(64), 1)
        assert refused(ledger, sign([action], by="doctor")) == "bad_key"

    def test_no_key_comes_back(self, ledger: Ledger) -> None:
        assert refused(ledger, sign([rotation("doctor", "doctor", 1)], by="doctor")) == "key_in_use"
        assert refused(ledger, sign([rotation("doctor", "payer", 1)], by="doctor")) == "key_in_use"

    def test_a_proof_is_made_out_to_the_account(self, ledger: Ledger) -> None:
        new = signing_key("doctor-2")
        for to in ("north-admin", "patient"):
            proof = identity.possession_proof(new, CHAIN, account_of(to))
            action = identity.Rotate(account_of("doctor"), new.public, proof, 1)
            assert refused(ledger, sign([action], by="doctor")) == "bad_proof"


class TestRevoke:
    def test_a_revoked_member_signs_no_more(self, ledger: Ledger) -> None:
        assert ledger.run(
            sign([revocation("doctor", 1)], by="north-admin"),
            sign([addition("r")], by="doctor", bodies=[b"x"]),
        ) == ["ok", "revoked"]
        assert account(ledger, "doctor").status == "revoked"
        assert account(ledger, "doctor").version == 2

    @pytest.mark.parametrize("by", ["south-admin", "doctor", "patient", "payer"])
    def test_only_by_an_admin_of_its_organisation(self, ledger: Ledger, by: str) -> None:
        assert refused(ledger, sign([revocation("patient", 1)], by=by)) == "not_allowed"

    def test_no_such_account(self, ledger: Ledger) -> None:
        assert refused(ledger, sign([revocation("nobody", 1)], by="north-admin")) == "no_such_account"

    def test_names_the_version_it_replaces(self, ledger: Ledger) -> None:
        assert refused(ledger, sign([revocation("doctor", 2)], by="north-admin")) == "stale_version"

    def test_once(self, ledger: Ledger) -> None:
        assert ledger.run(sign([revocation("doctor", 1)], by="north-admin")) == ["ok"]
        assert refused(ledger, sign([revocation("doctor", 1)], by="north-admin")) == "stale_version"
        assert refused(ledger, sign([revocation("doctor", 2)], by="north-admin")) == "revoked"

    def test_an_organisation_keeps_an_admin(self, ledger: Ledger) -> None:
        assert refused(ledger, sign([revocation("north-admin", 1)], by="north-admin")) == "last_admin"
        assert ledger.run(
            sign([registration("second", "admin")], by="north-admin"),
            sign([revocation("north-admin", 1)], by="second"),
            sign([revocation("second", 1)], by="second"),
        ) == ["ok", "ok", "last_admin"]
        assert admins(ledger, "north") == [account_of("second")]

    def test_two_admins_who_revoke_each_other_in_one_block(self, ledger: Ledger) -> None:
        assert ledger.run(sign([registration("second", "admin")], by="north-admin")) == ["ok"]
        assert ledger.run(
            sign([revocation("second", 1)], by="north-admin"),
            sign([revocation("north-admin", 1)], by="second"),
        ) == ["ok", "revoked"]

    def test_who_ended_oneself_does_nothing_more_in_the_same_transaction(self, ledger: Ledger) -> None:
        assert ledger.run(sign([registration("second", "admin")], by="north-admin")) == ["ok"]
        ending = revocation("second", 1)
        for then in (registration("new", "patient", admin="second"), revocation("doctor", 1)):
            assert refused(ledger, sign([ending, then], by="second")) == "revoked"


def test_which_key_signs_for_an_account_now(ledger: Ledger) -> None:
    def code(name: str, key: str) -> str:
        try:
            identity.check_key(ledger.get, account_of(name), signing_key(key).public)
        except Rejection as rejection:
            return rejection.code
        return "ok"

    assert code("doctor", "doctor") == "ok"
    assert code("doctor", "patient") == "wrong_signer"
    assert code("nobody", "nobody") == "unregistered"
    assert ledger.run(sign([rotation("doctor", "doctor-2", 1)], by="doctor")) == ["ok"]
    assert (code("doctor", "doctor"), code("doctor", "doctor-2")) == ("wrong_signer", "ok")
    assert ledger.run(sign([revocation("doctor", 2)], by="north-admin")) == ["ok"]
    assert (code("doctor", "doctor"), code("doctor", "doctor-2")) == ("wrong_signer", "revoked")


def test_no_bit_of_a_proof_is_free() -> None:
    ledger = Ledger()
    honest = registration("new", "patient")
    for bit in range(len(honest.proof) * 8):
        proof = bytearray(honest.proof)
        proof[bit // 8] ^= 1 << bit % 8
        action = identity.Register(honest.key, bytes(proof), honest.role)
        assert ledger.run(sign([action], by="north-admin")) == ["bad_proof"]
    assert ledger.run(sign([honest], by="north-admin")) == ["ok"]
