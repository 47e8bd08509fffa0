"""What each word of a scenario does. Arguments come as words; `_take` complains about too few or too many."""

from collections.abc import Callable

from consensus.errors import InvariantViolation, require
from consensus.messages import (
    Append,
    Certificate,
    CertifiedBlocks,
    Configuration,
    Entry,
    HardState,
    Message,
    NodeId,
    Reason,
    Role,
)
from tests.stage import forge
from tests.stage.expectations import expect
from tests.stage.script import NotPerformedError, Play
from tests.stage.stage import GENESIS, Stage, StageError, acknowledgement, block_hash

Command = Callable[[Play, list[str]], None]


def _take(words: list[str], least: int, most: int) -> list[str | None]:
    if not least <= len(words) <= most:
        raise StageError(f"takes {least} to {most} words")
    return [*words, *[None] * (most - len(words))]


# before the curtain


def _voters(play: Play, words: list[str]) -> None:
    play.voters = tuple(words)


def _learners(play: Play, words: list[str]) -> None:
    play.learners = tuple(words)


def _settings(play: Play, words: list[str]) -> None:
    for word in words:
        key, _, value = word.partition("=")
        play.settings[key] = int(value)


def build_chain(stage: Stage, blocks: list[str]) -> list[Entry]:
    """ "1@1 2@1 3@2x": blocks from height 1 up; a mark after the term makes another block of that height and term."""
    chain: list[Entry] = []
    for word in blocks:
        height, term, data = forge.parse_block(word)
        parent = chain[-1].hash if chain else GENESIS
        if height != len(chain) + 1:
            raise StageError(f"{word} is not at height {len(chain) + 1}")
        chain.append(Entry(height, term, parent, block_hash(height, term, parent, data), data))
        stage.labels[chain[-1].hash] = word
    return chain


def _log(play: Play, words: list[str]) -> None:
    names, blocks = words[0].split(","), words[1:]

    def prepare(stage: Stage) -> None:
        for name in names:
            disk = stage.node(name).disk
            disk.blocks = {entry.height: entry for entry in build_chain(stage, blocks)}
            if disk.hard_state.term == 0:
                disk.hard_state = HardState(max(entry.term for entry in disk.blocks.values()))

    play.before_start.append(prepare)


def _term(play: Play, words: list[str]) -> None:
    names, term, _, vote = _take(words, 2, 4)

    def prepare(stage: Stage) -> None:
        for name in str(names).split(","):
            stage.node(name).disk.hard_state = HardState(int(str(term)), vote)

    play.before_start.append(prepare)


def _certified(play: Play, words: list[str]) -> None:
    """certified n1,n2 HEIGHT: their disks hold a certificate of that block, by the first voters that are a quorum."""
    names, height = words[0].split(","), int(words[1])

    def prepare(stage: Stage) -> None:
        for name in names:
            disk = stage.node(name).disk
            signers = stage.configuration.voters[: len(stage.configuration.voters) // 2 + 1]
            disk.certificate = certificate_of(disk.blocks[height], signers)

    play.before_start.append(prepare)


def certificate_of(entry: Entry, signers: tuple[NodeId, ...]) -> Certificate:
    signatures = tuple((name, acknowledgement(name, entry.term, entry.height, entry.hash)) for name in signers)
    return Certificate(entry.term, entry.height, entry.hash, signatures)


def _needs(play: Play, words: list[str]) -> None:
    """needs assertions: without them the core shows nothing of this, and the file is not performed."""
    if words != ["assertions"]:
        raise StageError("needs assertions")
    try:
        require(False, "are assertions on?")
    except InvariantViolation:
        return
    raise NotPerformedError


def _unjudged(play: Play, words: list[str]) -> None:
    """unjudged: what the story assumes to be on the disks cannot have come about; its traces are not judged."""
    _take(words, 0, 0)
    play.before_start.append(lambda stage: stage.tampered.update(stage.nodes))


def _down(play: Play, words: list[str]) -> None:
    play.down |= set(words)


def _slow_at_start(play: Play, words: list[str]) -> None:
    def prepare(stage: Stage) -> None:
        for name in words:
            stage.node(name).slow = True

    play.before_start.append(prepare)


# time


def _names(stage: Stage, word: str) -> list[NodeId]:
    running = [name for name, node in stage.nodes.items() if node.core is not None]
    return running if word == "all" else word.split(",")


def _tick(play: Play, words: list[str]) -> None:
    names, ticks = _take(words, 1, 2)
    for _ in range(int(ticks or 1)):
        for name in _names(play.stage, str(names)):
            play.stage.act(name, lambda core: core.tick(), "tick")


def _timeout(play: Play, words: list[str]) -> None:
    """timeout n1: its clock goes on until it asks for votes."""
    (name,) = words
    core = play.stage.node(name).running
    for _ in range(100):
        play.stage.act(name, lambda core: core.tick(), "tick")
        if core.role is not Role.FOLLOWER:
            return
    raise StageError(f"{name} does not campaign")


def _elect(play: Play, words: list[str]) -> None:
    """elect n1 [of n1,n2,n3]: leases end, n1's timeout passes, and all goes well for it among these nodes."""
    name, _, among = _take(words, 1, 3)
    stage = play.stage
    names = _names(stage, among or "all")
    stage.quiet = True
    for other in names:
        if other != name:
            for _ in range(10):
                stage.act(other, lambda core: core.tick(), "tick")
    _timeout(play, [str(name)])
    stage.settle(set(names))
    stage.quiet = False
    if stage.node(str(name)).running.role is not Role.LEADER:
        raise StageError(f"{name} is not elected")


def _settle(play: Play, words: list[str]) -> None:
    (among,) = _take(words, 0, 1)
    play.stage.quiet = True
    play.stage.settle(set(_names(play.stage, among or "all")) | ({*play.stage.nodes} if among is None else set()))
    play.stage.quiet = False


# network


def _pick(play: Play, words: list[str]) -> tuple[NodeId, NodeId, Message]:
    sender, receiver, kind = _take(words, 2, 3)
    return str(sender), str(receiver), play.stage.find(str(sender), str(receiver), kind)


def _deliver(play: Play, words: list[str]) -> None:
    """deliver n1 n2 [Kind] | deliver n1 n2 all | deliver NAME (kept before; it stays in the pocket)"""
    stage = play.stage
    if len(words) == 1:
        if words[0] not in stage.pockets:
            raise StageError(f"nothing was kept as {words[0]}")
        stage.deliver(*stage.pockets[words[0]])
    elif words[2:] == ["all"]:
        for _ in range(len(stage.queues[words[0], words[1]])):
            stage.deliver(words[0], words[1], stage.find(words[0], words[1], None))
    else:
        stage.deliver(*_pick(play, words))


def _drop(play: Play, words: list[str]) -> None:
    """drop n1 n2 [Kind] | drop n1 n2 all | drop all"""
    if words == ["all"]:
        play.stage.queues.clear()
    elif words[2:] == ["all"]:
        play.stage.queues[words[0], words[1]].clear()
    else:
        _pick(play, words)


def _hold(play: Play, words: list[str]) -> None:
    """hold n1 n2 [Kind] as NAME: the message does not arrive until `deliver NAME`, which may be said repeatedly."""
    *picked, as_word, name = words
    if as_word != "as":
        raise StageError("hold … as NAME")
    play.stage.pockets[name] = _pick(play, picked)


def _copy(play: Play, words: list[str]) -> None:
    """copy n1 n2 [Kind] as NAME: the message stays under way, and can arrive once more by `deliver NAME`."""
    _hold(play, words)
    sender, receiver, message = play.stage.pockets[words[-1]]
    play.stage.queues[sender, receiver].appendleft(message)


def _cut(play: Play, words: list[str]) -> None:
    """cut n1 n2: nothing passes in either direction; cut n1 > n2: only that one is closed; cut n1: from all."""
    stage = play.stage
    if len(words) == 1:
        stage.cut |= {pair for other in stage.nodes for pair in ((words[0], other), (other, words[0]))}
    elif words[1] == ">":
        stage.cut.add((words[0], words[2]))
    else:
        stage.cut |= {(words[0], words[1]), (words[1], words[0])}
    for pair in stage.cut:
        stage.queues.pop(pair, None)


def _heal(play: Play, words: list[str]) -> None:
    _take(words, 0, 0)
    play.stage.cut.clear()


def _forge(play: Play, words: list[str]) -> None:
    """forge n4 n1 Kind key=value …: n1 is handed a message that no core sent."""
    sender, receiver, kind, *fields = words
    message = forge.message(play.stage, kind, dict(field.split("=", 1) for field in fields))
    play.stage.forged.add(sender)
    play.stage.deliver(sender, receiver, message)


# disk and life


def _slow(play: Play, words: list[str]) -> None:
    for name in words:
        play.stage.node(name).slow = True


def _fast(play: Play, words: list[str]) -> None:
    for name in words:
        play.stage.node(name).slow = False
        _persist(play, [name])


def _persist(play: Play, words: list[str]) -> None:
    """persist n1 [COUNT]: the oldest batches (all) are written and reported; what that leads to waits again."""
    name, count = _take(words, 1, 2)
    stage = play.stage
    stage.write(str(name), len(stage.node(str(name)).pending) if count is None else int(count))
    stage.report(str(name))


def _write(play: Play, words: list[str]) -> None:
    name, count = _take(words, 1, 2)
    stage = play.stage
    stage.write(str(name), len(stage.node(str(name)).pending) if count is None else int(count))


def _report(play: Play, words: list[str]) -> None:
    name, seq = _take(words, 1, 2)
    play.stage.report(str(name), None if seq is None else int(seq))


def _crash(play: Play, words: list[str]) -> None:
    """The process dies; what it handed to the disk still arrives there."""
    for name in words:
        play.stage.stop_power(name, len(play.stage.node(name).pending))


def _power_loss(play: Play, words: list[str]) -> None:
    """power-loss n1 [keeping COUNT]: of the batches not yet written only the oldest COUNT (0) are on the disk."""
    name, _, keeping = _take(words, 1, 3)
    play.stage.stop_power(str(name), int(keeping or 0))


def _restart(play: Play, words: list[str]) -> None:
    for name in words:
        if play.stage.node(name).core is not None:
            play.stage.stop_power(name, len(play.stage.node(name).pending))
        play.stage.start(name)


def _fail_disk(play: Play, words: list[str]) -> None:
    (name,) = words
    play.stage.act(name, lambda core: core.disk_failed(), "disk_failed")
    play.stage.node(name).pending.clear()


def _backup(play: Play, words: list[str]) -> None:
    """backup n1 as NAME"""
    name, _, copy = words
    play.stage.backups[copy] = play.stage.backup(name)


def _restore(play: Play, words: list[str]) -> None:
    """restore n1 NAME: a stopped node's disk becomes the copy made before."""
    name, copy = words
    play.stage.node(name).disk = play.stage.backups[copy]
    play.stage.tampered.add(name)


# what the shell asks of its core


def _propose(play: Play, words: list[str]) -> None:
    """propose n1 [DATA]"""
    name, data = _take(words, 1, 2)
    height = play.stage.act(str(name), lambda core: core.propose((data or "").encode()), "propose")
    if height is None:
        play.stage.say(f"{name} takes no proposal")


def _refuse(play: Play, words: list[str]) -> None:
    """refuse n1 n2 HEIGHT REASON: n2 gets n1's oldest Append, and its shell finds the block at HEIGHT bad."""
    sender, receiver, height, reason = words
    message = play.stage.find(sender, receiver, "Append")
    assert isinstance(message, Append)
    given = {"from_": sender, "message": message, "height": int(height), "reason": reason}
    why = Reason(reason)
    play.stage.act(receiver, lambda core: core.refuse(sender, message, int(height), why), "refuse", **given)


def _mend(play: Play, words: list[str]) -> None:
    (name,) = words
    play.stage.act(name, lambda core: core.mend(), "mend")


def _fetch(play: Play, words: list[str]) -> None:
    """fetch n2 n1 FIRST: n2 takes certified blocks from FIRST up, to n1's newest certificate, off n1's disk."""
    name, other, first = words
    disk = play.stage.node(other).disk
    if disk.certificate is None:
        raise StageError(f"{other} has no certificate")
    entries = tuple(disk.blocks[height] for height in range(int(first), disk.certificate.height + 1))
    blocks = CertifiedBlocks(entries, disk.certificate)
    given = {"from_": other, "blocks": blocks}
    taken = play.stage.act(name, lambda core: core.step_certified(other, blocks), "certified", **given)
    play.stage.say(f"{name} {'takes' if taken else 'does not take'} the certified blocks of {other}")


def _membership(words: list[str]) -> Configuration:
    """n1,n2,n3 [learners n4,n5]"""
    voters, _, learners = _take(words, 1, 3)
    return Configuration(tuple(str(voters).split(",")), tuple(learners.split(",")) if learners else ())


def _change(play: Play, words: list[str]) -> None:
    """change n1 n1,n2,n3 [learners n4,n5]: n1 shall append the change to these voters and learners."""
    name, target = words[0], _membership(words[1:])
    height = play.stage.act(name, lambda core: core.propose_change(target), "change", target=target)
    if height is None:
        play.stage.say(f"{name} does not: {play.stage.node(name).running.why_no_change(target)}")


def _spawn(play: Play, words: list[str]) -> None:
    """spawn n4: a node with an empty disk."""
    for name in words:
        play.stage.add_node(name)
        play.stage.start(name)


def _transfer(play: Play, words: list[str]) -> None:
    """transfer n1 [n2]"""
    name, target = _take(words, 1, 2)
    begun = play.stage.act(str(name), lambda core: core.transfer(target), "transfer", target=target)
    if not begun:
        play.stage.say(f"{name} hands over to nobody")


def _stop(play: Play, words: list[str]) -> None:
    (name,) = words
    play.stage.act(name, lambda core: core.stop(), "stop")


def _read(play: Play, words: list[str]) -> None:
    """read n1 TOKEN"""
    name, token = words[0], int(words[1])
    play.stage.act(name, lambda core: core.read(token), "read", token=token)


def _compact(play: Play, words: list[str]) -> None:
    """compact n1 HEIGHT: the log's base moves up, in the core and on the disk."""
    name, height = words[0], int(words[1])
    node = play.stage.node(name)
    play.stage.act(name, lambda core: core.compact(height), "compact", height=height)
    if node.core is not None:
        node.disk.compact(height)


def _compared(play: Play, words: list[str]) -> None:
    """compared n1 n2 [HEIGHT]: n2, which had certified blocks up to HEIGHT (0), showed n1 nothing that n1 forgot."""
    name, peer, height = words[0], words[1], int((words[2:] or ["0"])[0])
    play.stage.act(name, lambda core: core.compared(peer, height), "compared", peer=peer, height=height)


def _forswear(play: Play, words: list[str]) -> None:
    (name,) = words
    play.stage.node(name).disk.forsworn = True
    play.stage.act(name, lambda core: core.forswear(), "forswear")


def _must_compare(play: Play, words: list[str]) -> None:
    """must-compare n1: whenever it starts, n1 has to compare notes before it votes."""

    def prepare(stage: Stage) -> None:
        for name in words:
            stage.node(name).disk.must_compare = True

    play.before_start.append(prepare)


SETTINGS: dict[str, Command] = {
    "voters": _voters,
    "learners": _learners,
    "settings": _settings,
    "log": _log,
    "term": _term,
    "certified": _certified,
    "needs": _needs,
    "unjudged": _unjudged,
    "down": _down,
    "must-compare": _must_compare,
    "slow": _slow_at_start,
}

COMMANDS: dict[str, Command] = {
    "expect": expect,
    "tick": _tick,
    "timeout": _timeout,
    "elect": _elect,
    "settle": _settle,
    "deliver": _deliver,
    "drop": _drop,
    "hold": _hold,
    "copy": _copy,
    "cut": _cut,
    "heal": _heal,
    "forge": _forge,
    "slow": _slow,
    "fast": _fast,
    "persist": _persist,
    "write": _write,
    "report": _report,
    "crash": _crash,
    "power-loss": _power_loss,
    "restart": _restart,
    "fail-disk": _fail_disk,
    "backup": _backup,
    "restore": _restore,
    "propose": _propose,
    "refuse": _refuse,
    "mend": _mend,
    "fetch": _fetch,
    "change": _change,
    "spawn": _spawn,
    "transfer": _transfer,
    "stop": _stop,
    "read": _read,
    "compact": _compact,
    "compared": _compared,
    "forswear": _forswear,
}
