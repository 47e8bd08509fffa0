"""What the node counts and measures, for Prometheus. Names and labels only: never an id, a key or content.

Labels take their values from closed sets (stable codes, frame kinds, endpoint templates), so that nobody
outside can grow the number of series.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from node.stages import Stages

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds: from one synced write on an SSD to an election and a catch-up.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Seconds of a processor: from a heartbeat to the largest block.
STAGE_BUCKETS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, *BUCKETS[1:11])


class Metrics:
    """Every series of one node, in a registry of its own. Attributes are the series; `render` is /metrics."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"carequorum_{name}", text, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"carequorum_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"carequorum_{name}", text, registry=registry, buckets=BUCKETS)

        self.term = gauge("term", "Current term")
        self.amnesia = gauge("amnesia", "1 on a node whose disk forgot what it had signed: it votes no more")
        self.is_leader = gauge("is_leader", "1 while this node leads, else 0")
        self.last_height = gauge("last_height", "Height of the last block in the log, committed or not")
        self.commit_height = gauge("commit_height", "Highest certified height known here")
        self.executed_height = gauge("executed_height", "Height of the last block executed here")
        self.sealed_height = gauge("sealed_height", "Height at which receipts and proofs answer; 0 before any")
        self.base_height = gauge("base_height", "Blocks up to this height are pruned here; 0 while all are kept")
        self.snapshot_height = gauge("snapshot_height", "Height of the newest snapshot here; 0 before any")
        self.voters = gauge("voters", "Voters as executed here, old ones included while a change is not complete")
        self.learners = gauge("learners", "Nodes that follow without a vote")
        self.configuration_steps = gauge("configuration_steps", "Changes of the voters that are complete")
        self.change_pending = gauge("change_pending", "1 while a voted change of the nodes is not complete, else 0")
        self.pool_transactions = gauge("pool_transactions", "Transactions that wait for a block")
        self.pool_bytes = gauge("pool_bytes", "Their bytes, bodies included")
        self.peers_connected = gauge("peers_connected", "Peers with a link in at least one direction")
        self.clock_offset_seconds = gauge("clock_offset_seconds", "This clock minus the newest block's time")

        self.transactions_admitted = counter("transactions_admitted", "Transactions taken into the pool", "source")
        self.transactions_refused = counter("transactions_refused", "Transactions refused, by code", "code")
        self.transactions_executed = counter("transactions_executed", "Transactions executed, by code", "code")
        self.blocks_committed = counter("blocks_committed", "Blocks certified and executed here")
        self.elections = counter("elections", "Elections that this node started")
        self.refused_connections = counter("refused_connections", "Peer connections refused", "reason")
        self.bad_frames = counter("bad_frames", "Frames or messages refused; malformed ones close their link", "kind")
        self.frames_in = counter("frames_in", "Frames received", "kind")
        self.frames_out = counter("frames_out", "Frames sent", "kind")
        self.frame_bytes_in = counter("frame_bytes_in", "Bytes of frames received", "kind")
        self.frame_bytes_out = counter("frame_bytes_out", "Bytes of frames sent", "kind")
        self.messages_dropped = counter("messages_dropped", "Messages not sent or not used", "kind", "reason")
        self.snapshot_chunks_served = counter("snapshot_chunks_served", "Chunks of snapshots given to peers")
        self.snapshot_chunks_fetched = counter("snapshot_chunks_fetched", "Chunks of snapshots taken from peers")
        self.snapshot_chunks_refused = counter("snapshot_chunks_refused", "Chunks that were not what was asked for")
        self.http_requests = counter("http_requests", "Provider requests answered", "endpoint", "status")
        self.event_readers = gauge("event_readers", "Readers of events connected now")
        self.event_readers_cut = counter("event_readers_cut", "Readers of events cut off by this node", "reason")
        self.events_sent = counter("events_sent", "Events sent, to all readers together")

        self.stage_seconds = Stages(
            "carequorum_stage_seconds",
            "Processor time of one pass through a stage, without the stages inside it",
            STAGE_BUCKETS,
        )
        registry.register(self.stage_seconds)

        self.commit_seconds = seconds("commit_seconds", "Admission to execution here, of each block's oldest")
        self.persist_seconds = seconds("persist_seconds", "One synced write of the log")
        self.execute_seconds = seconds("execute_seconds", "Execution of one block")
        self.http_seconds = seconds("http_seconds", "Provider requests, waiting included")

    def render(self) -> bytes:
        """The Prometheus text format, UTF-8."""
        return generate_latest(self.registry)
