"""The Raft log on disk: blocks, a link beside each, the bodies they name, and the hard state.

Everything that one Ready asks for goes into one synced batch, so after a power loss the log is what some
`persist` left, whole. Its end stands in a record of its own. So a height that cannot be read is damage, and
never merely a shorter log: a node that forgot what it acknowledged must not start.
"""

from collections.abc import Mapping, Sequence

from consensus.messages import Entry, HardState
from ledger.block import Block, decode_block
from ledger.errors import Rejection
from ledger.keys import HASH_BYTES
from ledger.membership import Configuration
from storage import configurations, schema
from storage.base import Base, base_write, genesis_base
from storage.configurations import Configurations
from storage.port import KeyValue, StorageFailure, Write
from storage.schema import Link, LogRecord, must, require

# What a stored block may weigh at most; the network's own, lower limit is applied before a block comes here.
BLOCK_BYTES_MAX = 16 * 1024 * 1024
# How many links are walked at boot. All of them are read by `check`.
BOOT_LINKS_MAX = 100_000
# A read that a truncation overtakes is done again, this often.
READ_ATTEMPTS_MAX = 3


def genesis_link(chain: bytes) -> Link:
    """Genesis as a place in the chain: term 0, and no parent."""
    return Link(0, chain, bytes(HASH_BYTES))


def genesis_log(chain: bytes, configuration: Configuration) -> list[Write]:
    """What founds an empty log: height 0 is genesis itself, of term 0."""
    end = LogRecord(configured=0, format=schema.FORMAT, hash=chain, height=0, term=0, vote=None)
    return [
        *configurations.writes_of(((0, configuration),)),
        base_write(genesis_base(chain)),
        (schema.link_key(0), genesis_link(chain).encode()),
        (schema.LOG_KEY, schema.seal(end)),
    ]


class BlockLog:
    """`persist` runs in the writer thread; reads may run in another, and see the log before or after it.

    While a truncation is being written, the heights that it deletes answer like heights above the end.
    """

    def __init__(self, kv: KeyValue, executed_height: int) -> None:
        """Read the end of the log and check what stands before it. Blocks above `executed_height` are
        decoded.

        Raises StorageFailure: a hole, a broken link, a block that is not what its link says, or a term
        below the newest block's (the vote of a later term was forgotten).
        """
        self._kv = kv
        data = kv.get(schema.LOG_KEY)
        if data is None:
            raise StorageFailure("the record of the log's end is missing")
        self._end = schema.unseal(LogRecord, data, "record of the log's end")
        require(self._end.format == schema.FORMAT, f"log format {self._end.format} is unknown")
        require(executed_height <= self._end.height, "the log ends below the executed height")
        self.base = Base(kv)
        require(self.base.height <= executed_height, "more is pruned than was executed")
        # What a truncation under way does not touch; and how many there were, for reads that one overtakes.
        self._readable = self._end.height
        self._truncations = 0
        self._configurations = configurations.load(kv, self._end.configured)
        require(self._end.configured <= self._end.height, "a configuration stands above the log's end")
        self._check_links()
        for height in range(executed_height + 1, self._end.height + 1):
            self.block(height)
        newest = self._link(self._end.height)
        fault = f"term {self._end.term} is below the newest block's, {newest.term}"
        require(newest.term <= self._end.term, fault)

    @property
    def last_height(self) -> int:
        """The newest block that is durable and is not being deleted; 0 when there is only genesis."""
        return self._readable

    @property
    def hard_state(self) -> HardState:
        return HardState(self._end.term, self._end.vote)

    @property
    def configurations(self) -> Configurations:
        """Those in effect along the durable log."""
        return self._configurations

    def persist(
        self,
        truncate_from: int | None,
        entries: Sequence[Entry],
        bodies: Mapping[bytes, bytes],
        hard_state: HardState | None,
    ) -> None:
        """Delete from `truncate_from` up, append, keep `bodies` by commitment, move the hard state: one
        synced batch.

        `truncate_from` may be above the end: what several Ready lists leave may take back what was never
        written. Memory moves only once the disk has. Raises StorageFailure. Bodies of deleted blocks stay: another
        transaction may name the same commitment.
        """
        end = self._end
        batch: list[Write] = []
        kept = end.height
        assert truncate_from is None or truncate_from >= 1, "genesis stays"
        if truncate_from is not None:
            kept = min(truncate_from - 1, end.height)
            for height in range(kept + 1, end.height + 1):
                batch += [(schema.block_key(height), None), (schema.link_key(height), None)]
        known = tuple(item for item in self._configurations if item[0] <= kept)
        batch += [(schema.configuration_key(height), None) for height, _ in self._configurations[len(known) :]]
        tail = self._link(kept)
        for entry in entries:
            assert (entry.height, entry.parent) == (kept + 1, tail.hash), "entries follow on the log"
            assert entry.term >= tail.term, "terms never fall along the log"
            kept, tail = entry.height, Link(entry.term, entry.hash, entry.parent)
            batch += [(schema.block_key(kept), entry.data), (schema.link_key(kept), tail.encode())]
            known, writes = configurations.gained(known, entry)
            batch += writes
        batch += [(schema.body_key(commitment), body) for commitment, body in bodies.items()]
        state = hard_state or self.hard_state
        assert state.term >= max(end.term, tail.term), "the term never falls, nor stays below a block's"
        assert state.term > end.term or end.vote in (None, state.vote), "one vote a term"
        end = LogRecord(
            configured=known[-1][0],
            format=schema.FORMAT,
            hash=tail.hash,
            height=kept,
            term=state.term,
            vote=state.vote,
        )
        batch.append((schema.LOG_KEY, schema.seal(end)))
        if truncate_from is not None:
            self._truncations += 1
            self._readable = min(truncate_from - 1, self._readable)
        self._kv.write(batch, sync=True)
        self._end = end
        self._configurations = known
        self._readable = end.height

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        """The term and the hash of the block at `height`, or None above the end and below the base."""
        if not self.base.height <= height <= self._readable:
            return None
        data = self._kv.get(schema.link_key(height))
        if data is None and height > self._readable:
            return None
        link = schema.decode_link(must(data, schema.link_key(height)), height)
        return link.term, link.hash

    def block_data(self, height: int) -> bytes:
        """The bytes of the block at `height`, which is in the log."""
        assert self.base.height < height <= self._readable, "blocks are asked for inside the log"
        key = schema.block_key(height)
        return must(self._kv.get(key), key)

    def block(self, height: int) -> Block:
        """The decoded block at `height`. Raises StorageFailure if it is not what its link says."""
        try:
            block = decode_block(self.block_data(height), BLOCK_BYTES_MAX)
        except Rejection as error:
            raise StorageFailure(f"block {height} is not what was written: {error}") from None
        header = block.header
        found = (header.height, header.term, block.hash, header.parent)
        require(found == (height, *self._link(height)), f"block {height} is not what its link says")
        return block

    def entry(self, height: int) -> Entry | None:
        found = self.entries(height, height, 0)
        return found[0] if found else None

    def entries(self, first: int, last: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries from `first` to at most `last`, as many as fit in `bytes_max` and at least one; () above
        the end.

        Raises StorageFailure for a hole or a broken link.
        """
        assert first > self.base.height, "the base, or genesis, is no entry"
        for _ in range(READ_ATTEMPTS_MAX):
            truncations = self._truncations
            found = self._read(first, min(last, self._readable), bytes_max)
            if self._truncations == truncations:
                require(found is not None, f"the log has a hole or a broken link from height {first} on")
                return found or ()
        raise StorageFailure(f"the log was truncated {READ_ATTEMPTS_MAX} times during one read")

    def body(self, commitment: bytes) -> bytes | None:
        return self._kv.get(schema.body_key(commitment))

    def _read(self, first: int, last: int, bytes_max: int) -> tuple[Entry, ...] | None:
        """None where the heights do not connect: a truncation came between two reads, or damage."""
        found: list[Entry] = []
        size = 0
        changed = [item for item in self._configurations if first <= item[0] <= last]
        changes = {height: configurations.members_of(configuration) for height, configuration in changed}
        for height in range(first, last + 1):
            data = self._kv.get(schema.block_key(height))
            linked = self._kv.get(schema.link_key(height))
            if data is None or linked is None:
                return None
            if found and size + len(data) > bytes_max:
                break
            link = schema.decode_link(linked, height)
            if found and link.parent != found[-1].hash:
                return None
            found.append(Entry(height, link.term, link.parent, link.hash, data, changes.get(height)))
            size += len(data)
        return tuple(found)

    def _check_links(self) -> None:
        """Walk the newest links back, down to the base or BOOT_LINKS_MAX of them."""
        expected, base = self._end.hash, self.base.record
        for height in range(self._end.height, max(base.height - 1, self._end.height - BOOT_LINKS_MAX), -1):
            link = self._link(height)
            if height == base.height:
                require((link.term, link.hash) == (base.term, base.hash), "the base's record and its link differ")
            require(link.hash == expected, f"link {height} does not carry the hash that its child names")
            expected = link.parent

    def _link(self, height: int) -> Link:
        """For the writer thread and for boot, which no truncation can overtake."""
        key = schema.link_key(height)
        return schema.decode_link(must(self._kv.get(key), key), height)
