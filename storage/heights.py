"""What one height of the chain must hold by itself: block, link, signatures, bodies, certificate.

Shared by the whole check and by the one at boot. Nothing stored is trusted: keys follow from heights and from
blocks, and what cannot be read is a problem like another.
"""

from collections.abc import Callable
from typing import TypeVar

from ledger.block import Block, decode_block, verify_header
from ledger.errors import Rejection
from ledger.finality import Certificate, decode_certificate, make_certificate, verify_certificate
from ledger.genesis import Genesis
from ledger.membership import Configuration
from ledger.transaction import body_commitment, check_signature
from storage import schema
from storage.base import BASE_KEY, BaseRecord, base_header, genesis_base, load_base
from storage.configurations import Configurations, check_proof, configuration_of, in_effect, record_at
from storage.log import BLOCK_BYTES_MAX, genesis_link
from storage.port import KeyValue, StorageFailure
from storage.report import CheckReport, Problem
from storage.schema import Link, LogRecord

T = TypeVar("T")

# Which file holds a key, as far as can be told.
FileOf = Callable[[bytes], str | None]


def no_file(key: bytes) -> str | None:
    """For databases that are no folder."""
    return None


class Heights:
    """Reads a store that nobody writes to; what is wrong goes into `report`."""

    def __init__(self, kv: KeyValue, genesis: Genesis, report: CheckReport, file_of: FileOf) -> None:
        self.report = report
        self.chain = genesis.chain_id()
        self._kv = kv
        self._genesis = genesis
        self._file_of = file_of
        self._configurations = self._load_configurations()
        self.base = self._load_base()
        header = base_header(self.base)
        self._base_time_ms = genesis.time if header is None else header.time

    def add(self, height: int | None, key: bytes, fault: str) -> None:
        """A problem with the record at `key`."""
        self.report.add(Problem(height, schema.name_of(key), fault, self._file_of(key)))

    def read(self, key: bytes, height: int | None, *, required: bool = True) -> bytes | None:
        """A stored value; None, and a problem, where it cannot be read or is missing though `required`."""
        try:
            value = self._kv.get(key)
        except StorageFailure as error:
            self.add(height, key, f"{error}")
            return None
        if value is None and required:
            self.add(height, key, "it is missing")
        return value

    def end(self, key: bytes, shape: type[T], key_at: Callable[[int], bytes]) -> tuple[T | None, int, str]:
        """The sealed record of an end; or None, the highest height up to which every `key_at` has something, and
        what is wrong.
        """
        try:
            data = self._kv.get(key)
            if data is not None:
                return schema.unseal(shape, data, schema.name_of(key)), 0, ""
            fault = "it is missing"
        except StorageFailure as error:
            fault = str(error)
        height = self.base.height
        while self._stands(key_at(height + 1)):
            height += 1
        return None, height, fault

    def _stands(self, key: bytes) -> bool:
        try:
            return self._kv.get(key) is not None
        except StorageFailure:
            return True

    def link(self, height: int) -> Link | None:
        """The link at `height`, from 0."""
        data = self.read(schema.link_key(height), height)
        if data is None:
            return None
        try:
            link = schema.decode_link(data, height)
        except StorageFailure as error:
            self.add(height, schema.link_key(height), str(error))
            return None
        if height == 0 and link != genesis_link(self.chain):
            self.add(0, schema.link_key(0), "it is not what genesis gives")
        return link

    def block(self, height: int) -> Block | None:
        """The block at `height`, from 1."""
        data = self.read(schema.block_key(height), height)
        if data is None:
            return None
        try:
            return decode_block(data, BLOCK_BYTES_MAX)
        except Rejection as error:
            self.add(height, schema.block_key(height), str(error))
            return None

    def check_link(self, height: int, link: Link | None, block: Block) -> None:
        """The link says what the block says."""
        header = block.header
        if link is not None and link != Link(header.term, block.hash, header.parent):
            self.add(height, schema.link_key(height), "it is not what the block says")

    def check_header(self, height: int, block: Block, parent: Block | None, below: Link) -> None:
        """The rules that join a header to the one below it. `parent` is None above genesis and where it cannot
        be read; `below` is its place in the chain, with an empty hash where that is unknown.
        """
        header = block.header
        rules = [
            (header.height == height, "it is of another height"),
            (header.chain == self.chain, "it is of another chain"),
            (header.parent == below.hash or not below.hash, "it names another parent"),
            (header.term >= below.term, "its term falls"),
        ]
        if parent is not None:
            rules.append((header.time > parent.header.time, "its time is not after its parent's"))
            rules.append((header.executed_height >= parent.header.executed_height, "its executed height falls"))
        elif height == self.base.height + 1:
            rules.append((header.time > self._base_time_ms, "its time is not after the base's, or genesis"))
        faults = [fault for holds, fault in rules if not holds] + self._membership_faults(height, block, below)
        for fault in faults:
            self.add(height, schema.block_key(height), fault)

    def _membership_faults(self, height: int, block: Block, below: Link) -> list[str]:
        """What is wrong with how the block stands to the configurations at it and at the one below."""
        header = block.header
        before, stored = in_effect(self._configurations, height - 1), in_effect(self._configurations, height)
        faults: list[str] = []
        try:
            check_proof(header, below.term if below.hash else None, before)
            if configuration_of(before, header) != stored:
                raise Rejection("bad_change", "it leads to another configuration than is stored")
        except Rejection as error:
            faults.append(error.detail)
        if header.configuration != stored.digest():
            faults.append("it names another configuration")
        # Also one that is voted out, until the block that completes it is certified.
        key = before.proposers.get(header.proposer)
        if key is None:
            faults.append("its proposer is no voter")
        elif not verify_header(block.hash, block.signature, key):
            faults.append("the header's signature does not verify")
        return faults

    def check_signatures(self, height: int, block: Block) -> None:
        """Every transaction's."""
        for index, transaction in enumerate(block.transactions):
            try:
                check_signature(transaction, self.chain)
            except Rejection as error:
                self.add(height, schema.block_key(height), f"transaction {index}: {error}")

    def check_bodies(self, height: int, block: Block) -> None:
        """Every body that the block's transactions name, against its commitment."""
        for transaction in block.transactions:
            self.report.transactions += 1
            for reference in transaction.envelope.bodies:
                key = schema.body_key(reference.commitment)
                body = self.read(key, height, required=height > self.base.bodiless)
                if body is None:
                    continue
                self.report.bodies += 1
                if len(body) != reference.size or body_commitment(body) != reference.commitment:
                    self.add(height, key, "it does not match its commitment")

    def certificate(self, height: int, block: Block) -> Certificate | None:
        """This height's certificate. Where one must be but is not, or is damaged: one without signatures."""
        key = schema.certificate_key(height)
        stand_in = make_certificate(block.header.term, height, block.hash, [])
        claimed = self._claims_certificate(height)
        data = self.read(key, height, required=claimed)
        if data is None:
            return stand_in if claimed else None
        try:
            certificate = decode_certificate(data)
            configuration = in_effect(self._configurations, height)
            verify_certificate(certificate, self.chain, configuration.voters, configuration.old_voters)
            found = (certificate.height, certificate.hash, certificate.term)
            if found != (height, block.hash, block.header.term):
                raise Rejection("bad_certificate", "it certifies another block")
        except Rejection as error:
            self.add(height, key, str(error))
            return stand_in
        return certificate

    def is_configuration(self, key: bytes) -> bool:
        """Whether the log's end leads to this record."""
        return any(key == schema.configuration_key(height) for height, _ in self._configurations)

    def _load_configurations(self) -> Configurations:
        """Those along the log, down to the first that cannot be read; with none of them, genesis's."""
        found: list[tuple[int, Configuration]] = []
        try:
            data = self._kv.get(schema.LOG_KEY)
            end = None if data is None else schema.unseal(LogRecord, data, schema.name_of(schema.LOG_KEY))
        except StorageFailure:
            # `end` says so.
            end = None
        height = end.configured if end else None
        while height is not None:
            try:
                configuration, previous = record_at(self._kv, height)
            except StorageFailure as error:
                self.add(height, schema.configuration_key(height), str(error))
                break
            found.append((height, configuration))
            height = previous
        genesis = (0, self._genesis.configuration())
        if found and found[-1][0] == 0 and found[-1] != genesis:
            self.add(0, schema.configuration_key(0), "it is not what genesis gives")
        if not found or found[-1][0] > 0:
            found.append(genesis)
        return tuple(reversed(found))

    @property
    def below(self) -> Link:
        """The base's place in the chain."""
        header = base_header(self.base)
        return genesis_link(self.chain) if header is None else Link(header.term, self.base.hash, header.parent)

    def check_base(self) -> None:
        """Link and certificate of the base, if that is not genesis."""
        base = self.base
        link, claimed = self.link(base.height), self._claims_certificate(base.height)
        data = self.read(schema.certificate_key(base.height), base.height, required=claimed)
        if link is not None and link != self.below:
            self.add(base.height, schema.link_key(base.height), "it is not what the base's record says")
        if data is None:
            return
        try:
            certificate = decode_certificate(data)
            configuration = in_effect(self._configurations, base.height)
            verify_certificate(certificate, self.chain, configuration.voters, configuration.old_voters)
            if (certificate.height, certificate.hash) != (base.height, base.hash):
                raise Rejection("bad_certificate", "it certifies another block")
        except Rejection as error:
            self.add(base.height, schema.certificate_key(base.height), str(error))

    def _load_base(self) -> BaseRecord:
        """The log's base; genesis where its record cannot be read, or there is none in an empty database."""
        try:
            if self._kv.get(schema.LOG_KEY) is not None:
                return load_base(self._kv)
        except StorageFailure as error:
            lowest = self._lowest_block()
            self.add(lowest - 1 if lowest else 0, BASE_KEY, str(error))
        return genesis_base(self.chain)

    def _lowest_block(self) -> int | None:
        try:
            lowest = next(self._kv.range(schema.block_key(0), schema.block_key(2**53)), None)
        except StorageFailure:
            return None
        return None if lowest is None else schema.height_of(lowest[0])

    def _claims_certificate(self, height: int) -> bool:
        """Whether the stored roots say that this very height has a certificate. They are checked elsewhere."""
        try:
            data = self._kv.get(schema.roots_key(height))
            return data is not None and schema.decode_roots(data, height).certified == height
        except StorageFailure:
            return False
