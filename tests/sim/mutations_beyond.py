"""Mutants of the room that keeps the core's promises: the simulator, which has the real store, must notice."""

from tests.sim.mutant import SIMULATOR, Mutant

BEYOND_THE_CORE = (
    Mutant(
        "the log is not synced",
        "F1",
        "log.py",
        "self._kv.write(batch, sync=True)\n        self._end = end",
        "self._kv.write(batch, sync=False)\n        self._end = end",
        SIMULATOR,
        room="storage",
    ),
    Mutant(
        "the executed height before the state",
        "F7",
        "executed.py",
        "changes[schema.EXECUTED_KEY] = schema.seal(self._record(last.block, last.sealed))",
        "self._kv.write([(schema.EXECUTED_KEY, schema.seal(self._record(last.block, last.sealed)))], sync=True)",
        SIMULATOR,
        room="storage",
    ),
    Mutant(
        "term, vote and end before the blocks",
        "F9",
        "log.py",
        "batch.append((schema.LOG_KEY, schema.seal(end)))",
        "self._kv.write([(schema.LOG_KEY, schema.seal(end))], sync=True)",
        SIMULATOR,
        room="storage",
    ),
    Mutant(
        "a vote is not written",
        "A1",
        "log.py",
        "            vote=state.vote,\n",
        "            vote=end.vote,\n",
        SIMULATOR,
        room="storage",
    ),
)
