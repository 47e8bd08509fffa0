"""Was that Raft? Replays the traces of all nodes of a network and rejects what Raft forbids.

    python -m tests.tracecheck n1.trace n2.trace …        (make trace-check FILES="…")

| module     | what it holds                                                                          |
|------------|----------------------------------------------------------------------------------------|
| `lines`    | reading trace files (their format: node/trace.py)                                      |
| `raft`     | quorums and configurations, from the dissertation, not from `consensus/`               |
| `member`   | one node, replayed: each transition must follow from its input and from what it held   |
| `outgoing` | each message a node sent must be one that it may send                                  |
| `network`  | what must hold between nodes, whatever the order: leaders, votes, blocks, certificates |
| `edits`    | single edits of good traces, each of which must be rejected                            |
| `traced`   | a core that keeps its own trace, for tests                                             |

The judge, which is all but `traced`, imports nothing of ours: a fault of the core cannot be a fault of its judge.
"""
