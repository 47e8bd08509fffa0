"""Who runs the network: its organisations and its nodes, and the votes that change them.

state key                        value
network/node/<id>                Node, for every node that ever was
network/nodes                    Ids of all of them
network/node-key/<key, hex>      NodeKey: the node whose certificate has or had this key
network/organisations            Ids of all organisations
network/parameters               Parameters
network/configuration            membership.Configuration: in effect at the executed height
network/step/<n>                 membership.Step, from 0; as many as the configuration counts
network/pending                  Pending: the change of membership that a vote left and no block has completed
network/proposal/<id, hex>       Proposal, also once it is closed
network/open/<organisation>      OpenProposals: neither closed nor, so far as was noticed, expired

action            signed by          refused, in the order of the checks
network.propose   an active admin    revoked not_admin proposal_exists too_many_proposals, then as the proposed change
network.vote      an active admin    revoked not_admin no_such_proposal proposal_closed proposal_expired
                                     already_voted; and where it passes, change_pending, then as the proposed change

proposed change     refused
add_organisation    organisation_exists too_many_organisations bad_key key_in_use bad_proof
add_node            node_exists no_such_organisation bad_certificate key_in_use too_many_nodes too_many_learners
promote             no_such_node not_a_learner too_many_voters too_many_steps
remove              no_such_node not_a_member last_voter too_many_steps
withdraw            nothing_pending change_appended

Rules behind the table: an organisation has one vote, which any of its admins gives; to propose is not to vote. A
proposal passes with the approval of more than half of all organisations, is rejected once it no longer can, and
expires. What it proposes is checked as it is made, and again as it passes: a vote that would pass what cannot be
done is refused, and the proposal stays open. A new organisation is there at once. A change of nodes is left pending,
one at a time, until the leader appends it; until then another vote may withdraw it, say where the leader waits for a
joiner that never comes. An id and a key serve one node, once: whoever comes back, comes as another.
"""

from bisect import insort
from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar, assert_never

import msgspec
from msgspec import Meta

from ledger import membership
from ledger.contracts import identity
from ledger.contracts.context import Context, Read, read_as
from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.finality import VOTERS_MAX, NodeId, Seal
from ledger.genesis import Address, Genesis, Kind, Name
from ledger.keys import AccountId, Bytes32, PublicKey, Signature
from ledger.membership import LEARNERS_MAX, STEPS_MAX, Change, Configuration, Step, configuration_after
from ledger.node_cert import DER_BYTES_MAX, standard_key

FORMAT = 1
# A week of block time.
PROPOSAL_LIFETIME_MS = 7 * 24 * 3600 * 1000
PROPOSALS_OPEN_MAX = 16
ORGANISATIONS_MAX = 256
# That ever were, removed ones included.
NODES_MAX = 1024
# A withdrawal may come too late for a change that another then follows on before either was executed.
STEPS_KEPT_FREE = 2

PARAMETERS_PATH = "network/parameters"
CONFIGURATION_PATH = "network/configuration"
PENDING_PATH = "network/pending"
NODES_PATH = "network/nodes"
ORGANISATIONS_PATH = "network/organisations"

Height = Annotated[int, Meta(ge=0, le=2**53)]
T = TypeVar("T")


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`address` is host:port of the peer port; `certificate` is the DER that peers pin. "pending": voted for, and
    not yet a learner. "removed": out for ever, as are its id and its key."""

    address: str
    certificate: bytes
    format: int
    key: PublicKey
    organisation: str
    role: Literal["voter", "learner", "pending", "removed"]


class Ids(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ascending."""

    format: int
    ids: list[NodeId]


class NodeKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    node: NodeId


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of a block, as genesis has them."""

    block_bytes_max: int
    block_transactions_max: int
    format: int


class Pending(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The vote on `proposal` passed at `height`, and the leader is to append the change of `node`, whose key is
    `key`. `appended` is the height of the block that did, while the configuration is joint."""

    appended: Height | None
    format: int
    height: Height
    key: PublicKey
    kind: Literal["add_node", "promote", "remove"]
    node: NodeId
    proposal: Bytes32


class NewAdmin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`proof` is an `identity.possession_proof` by `key`, made out to the account that proposes."""

    key: PublicKey
    proof: Signature


class AddOrganisation(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="add_organisation"
):
    """A new organisation and its first admins."""

    admins: Annotated[list[NewAdmin], Meta(min_length=1, max_length=16)]
    id: NodeId
    kind: Kind
    name: Name


class AddNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="add_node"):
    """A new node, which becomes a learner. `certificate` is DER, as `node_cert.make_certificate` makes it."""

    address: Address
    certificate: Annotated[bytes, Meta(max_length=DER_BYTES_MAX)]
    id: NodeId
    organisation: NodeId


class Promote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="promote"):
    """A learner becomes a voter."""

    node: NodeId


class Remove(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="remove"):
    """A learner or voter leaves, for ever."""

    node: NodeId


class Withdraw(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="withdraw"):
    """Drop what `proposal` left pending, as long as no block has appended it."""

    proposal: Bytes32


Proposed = AddOrganisation | AddNode | Promote | Remove | Withdraw


class Propose(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="network.propose"):
    """Put a change to the vote. `proposal` is its id, 32 random bytes."""

    change: Proposed
    proposal: Bytes32


class Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="network.vote"):
    """The vote of the signer's organisation. It counts once."""

    approve: bool
    proposal: Bytes32


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`by` proposed it for `organisation` in the block at `height`. After block time `expires`, in ms, an open one is
    as good as rejected. The lists are the organisations that voted, ascending."""

    approvals: list[NodeId]
    by: AccountId
    change: Proposed
    expires: int
    format: int
    height: Height
    organisation: NodeId
    rejections: list[NodeId]
    status: Literal["open", "passed", "rejected"]


class OpenProposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    expires: int
    proposal: Bytes32


class OpenProposals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Oldest first."""

    format: int
    proposals: list[OpenProposal]


def node_path(node: str) -> str:
    return f"network/node/{node}"


def node_key_path(key: bytes) -> str:
    return f"network/node-key/{key.hex()}"


def proposal_path(proposal: bytes) -> str:
    return f"network/proposal/{proposal.hex()}"


def open_path(organisation: str) -> str:
    return f"network/open/{organisation}"


def step_path(number: int) -> str:
    return f"network/step/{number}"


def node_record(read: Read, node: str) -> Node | None:
    """What is known of a node, or None if there never was one of this id."""
    return read_as(read, Node, node_path(node))


def node_records(read: Read) -> dict[str, Node]:
    """Every node that ever was, ascending: whom to pin, whom to send away, and every key that may have signed."""
    return {node: _must(node_record(read, node)) for node in _ids(read, NODES_PATH)}


def current_configuration(read: Read) -> Configuration:
    """The configuration in effect at the height that `read` answers for."""
    return _must(read_as(read, Configuration, CONFIGURATION_PATH))


def pending_change(read: Read) -> Pending | None:
    """What a vote left for the leader to append, or None."""
    return read_as(read, Pending, PENDING_PATH)


def steps(read: Read, count: int) -> list[Step]:
    """The first `count` steps, which all are complete."""
    return [_must(read_as(read, Step, step_path(number))) for number in range(count)]


def next_change(configuration: Configuration, pending: Pending) -> Change:
    """What a block whose parent's configuration this is must carry to do what was voted.

    Raises Rejection("bad_change") where it can not be done now.
    """
    match pending.kind:
        case "add_node":
            change = membership.with_learner(configuration, pending.node)
        case "promote":
            change = membership.with_voter(configuration, pending.node, pending.key)
        case "remove":
            change = membership.without(configuration, pending.node)
    configuration_after(configuration, change, leaves=False)
    return change


def genesis_state(genesis: Genesis) -> dict[str, bytes]:
    """The nodes, the parameters and the first configuration."""
    limits, keys = genesis.parameters, genesis.node_keys()
    state = {
        PARAMETERS_PATH: encode(Parameters(limits.block_bytes_max, limits.block_transactions_max, FORMAT)),
        CONFIGURATION_PATH: genesis.configuration().encode(),
        NODES_PATH: encode(Ids(FORMAT, [node.id for node in genesis.nodes])),
        ORGANISATIONS_PATH: encode(Ids(FORMAT, [organisation.id for organisation in genesis.organisations])),
    }
    for node in genesis.nodes:
        record = Node(node.address, node.certificate, FORMAT, keys[node.id], node.organisation, role=node.role)
        state[node_path(node.id)] = encode(record)
        state[node_key_path(keys[node.id])] = encode(NodeKey(FORMAT, node.id))
    return state


def check_new_keys(actions: Iterable[object]) -> None:
    """What needs no state: Rejection("bad_key") if an action brings a key that no account may have."""
    for action in actions:
        if isinstance(action, Propose) and isinstance(action.change, AddOrganisation):
            for admin in action.change.admins:
                identity.require_valid(admin.key)


def propose(context: Context, action: Propose) -> None:
    admin = identity.active_admin(context)
    if context.read(proposal_path(action.proposal)) is not None:
        raise Rejection("proposal_exists", "the proposal's id is taken")
    waiting = [each for each in _open(context, admin.organisation) if each.expires >= context.time_ms]
    if len(waiting) >= PROPOSALS_OPEN_MAX:
        raise Rejection("too_many_proposals", f"an organisation has at most {PROPOSALS_OPEN_MAX} open proposals")
    _check(context, action.change, context.by)
    proposal = Proposal(
        approvals=[],
        by=context.by,
        change=action.change,
        expires=context.time_ms + PROPOSAL_LIFETIME_MS,
        format=FORMAT,
        height=context.height,
        organisation=admin.organisation,
        rejections=[],
        status="open",
    )
    context.put(proposal_path(action.proposal), proposal)
    _put_open(context, admin.organisation, [*waiting, OpenProposal(proposal.expires, action.proposal)])


def vote(context: Context, action: Vote) -> None:
    admin = identity.active_admin(context)
    proposal = context.get_as(Proposal, proposal_path(action.proposal))
    if proposal is None:
        raise Rejection("no_such_proposal", "no proposal has this id")
    if proposal.status != "open":
        raise Rejection("proposal_closed", f"the proposal is {proposal.status}")
    if proposal.expires < context.time_ms:
        raise Rejection("proposal_expired", f"the vote ended at {proposal.expires}")
    if admin.organisation in proposal.approvals or admin.organisation in proposal.rejections:
        raise Rejection("already_voted", "an organisation votes once")
    approvals, rejections = list(proposal.approvals), list(proposal.rejections)
    insort(approvals if action.approve else rejections, admin.organisation)
    organisations = len(_ids(context.read, ORGANISATIONS_PATH))
    majority = organisations // 2 + 1
    status: Literal["open", "passed", "rejected"] = "open"
    if len(approvals) >= majority:
        status = "passed"
        _pass(context, action.proposal, proposal)
    elif organisations - len(rejections) < majority:
        status = "rejected"
    if status != "open":
        left = [each for each in _open(context, proposal.organisation) if each.proposal != action.proposal]
        _put_open(context, proposal.organisation, left)
    context.put(
        proposal_path(action.proposal),
        msgspec.structs.replace(proposal, approvals=approvals, rejections=rejections, status=status),
    )


def reconfigured(read: Read, reconfiguration: Change | Seal, height: int) -> dict[str, bytes | None]:
    """What the block at `height` makes of the membership: by its change, or by the seal of its parent that its proof
    completes.

    The header decides, not the vote: it was judged by the vote before it was certified. A vote that was withdrawn
    in a block between comes too late. Raises Rejection("bad_change") for what no block may do.
    """
    before, pending = current_configuration(read), pending_change(read)
    writes: dict[str, bytes | None] = {}
    if isinstance(reconfiguration, Seal):
        after = configuration_after(before, None, leaves=True)
        old = before.old_voters or {}
        writes[step_path(before.steps)] = encode(Step(reconfiguration, before.voters))
        moved: dict[str, Literal["voter", "learner", "removed"]] = {
            node: "voter" if node in after.voters else "removed" for node in old.keys() ^ after.voters.keys()
        }
        if pending is not None and pending.appended is not None:
            writes[PENDING_PATH] = None
    else:
        after = configuration_after(before, reconfiguration, leaves=False)
        both = set() if after.is_joint else set(before.learners) ^ set(after.learners)
        moved = {node: "learner" if node in after.learners else "removed" for node in both}
        if pending is not None and _makes(before, pending, reconfiguration):
            appended = encode(msgspec.structs.replace(pending, appended=height))
            writes[PENDING_PATH] = appended if after.is_joint else None
    writes[CONFIGURATION_PATH] = after.encode()
    for node, role in sorted(moved.items()):
        record = node_record(read, node)
        if record is not None:
            writes[node_path(node)] = encode(msgspec.structs.replace(record, role=role))
    return writes


def _check(context: Context, change: Proposed, by: bytes) -> None:
    """Rejection where the change cannot be made as things are; `by` proposes it."""
    match change:
        case AddOrganisation():
            _check_organisation(context, change, by)
        case AddNode():
            _check_node(context, change)
        case Promote():
            configuration = current_configuration(context.read)
            if _known(context, change.node).role != "learner":
                raise Rejection("not_a_learner", "only a learner is promoted")
            if len(configuration.voters) >= VOTERS_MAX:
                raise Rejection("too_many_voters", f"a network has at most {VOTERS_MAX} voters")
            _check_steps(configuration)
        case Remove():
            _check_removal(context, change)
        case Withdraw():
            pending = pending_change(context.read)
            if pending is None or pending.proposal != change.proposal:
                raise Rejection("nothing_pending", "this proposal left nothing that is pending")
            if pending.appended is not None:
                raise Rejection("change_appended", f"block {pending.appended} has begun the change")
        case _:
            assert_never(change)


def _check_organisation(context: Context, change: AddOrganisation, by: bytes) -> None:
    if context.read(identity.organisation_path(change.id)) is not None:
        raise Rejection("organisation_exists", "the organisation's id is taken")
    if len(_ids(context.read, ORGANISATIONS_PATH)) >= ORGANISATIONS_MAX:
        raise Rejection("too_many_organisations", f"a network has at most {ORGANISATIONS_MAX} organisations")
    for admin in change.admins:
        identity.require_new_key(context, admin.key, by, admin.proof)
    if len({admin.key for admin in change.admins}) != len(change.admins):
        raise Rejection("key_in_use", "a key serves one account, once")


def _check_node(context: Context, change: AddNode) -> None:
    configuration = current_configuration(context.read)
    if context.read(node_path(change.id)) is not None:
        raise Rejection("node_exists", "an id serves one node, once")
    if context.read(identity.organisation_path(change.organisation)) is None:
        raise Rejection("no_such_organisation", "the node's organisation does not exist")
    key = standard_key(change.certificate, change.id)
    if context.read(node_key_path(key)) is not None:
        raise Rejection("key_in_use", "a key serves one node, once")
    if len(_ids(context.read, NODES_PATH)) >= NODES_MAX:
        raise Rejection("too_many_nodes", f"a network has at most {NODES_MAX} nodes, removed ones included")
    if len(configuration.learners) >= LEARNERS_MAX:
        raise Rejection("too_many_learners", f"a network has at most {LEARNERS_MAX} learners")


def _check_removal(context: Context, change: Remove) -> None:
    configuration = current_configuration(context.read)
    role = _known(context, change.node).role
    if role not in ("learner", "voter"):
        raise Rejection("not_a_member", f"the node is {role}")
    if role == "voter":
        if len(configuration.voters) == 1:
            raise Rejection("last_voter", "a network keeps a voter")
        _check_steps(configuration)


def _check_steps(configuration: Configuration) -> None:
    if configuration.steps >= STEPS_MAX - STEPS_KEPT_FREE:
        raise Rejection("too_many_steps", f"the voters of a network change at most {STEPS_MAX} times")


def _pass(context: Context, proposal: bytes, passed: Proposal) -> None:
    """What a vote does as it passes: it is done, or left pending for the leader."""
    change = passed.change
    moves_nodes = isinstance(change, AddNode | Promote | Remove)
    if moves_nodes and pending_change(context.read) is not None:
        raise Rejection("change_pending", "another change of the nodes is pending")
    _check(context, change, passed.by)
    match change:
        case AddOrganisation():
            identity.found(context, change.id, change.kind, change.name, [admin.key for admin in change.admins])
            _add_id(context, ORGANISATIONS_PATH, change.id)
        case AddNode():
            key = standard_key(change.certificate, change.id)
            record = Node(change.address, change.certificate, FORMAT, key, change.organisation, role="pending")
            context.put(node_path(change.id), record)
            context.put(node_key_path(key), NodeKey(FORMAT, change.id))
            _add_id(context, NODES_PATH, change.id)
            _leave_pending(context, "add_node", change.id, proposal)
        case Promote():
            _leave_pending(context, "promote", change.node, proposal)
        case Remove():
            _leave_pending(context, "remove", change.node, proposal)
        case Withdraw():
            _withdraw(context)
        case _:
            assert_never(change)


def _leave_pending(
    context: Context, kind: Literal["add_node", "promote", "remove"], node: str, proposal: bytes
) -> None:
    context.put(
        PENDING_PATH,
        Pending(
            appended=None,
            format=FORMAT,
            height=context.height,
            key=_known(context, node).key,
            kind=kind,
            node=node,
            proposal=proposal,
        ),
    )


def _withdraw(context: Context) -> None:
    """A node that was to come is spent: its id was on every node."""
    pending = _must(pending_change(context.read))
    if pending.kind == "add_node":
        record = msgspec.structs.replace(_known(context, pending.node), role="removed")
        context.put(node_path(pending.node), record)
    context.delete(PENDING_PATH)


def _known(context: Context, node: str) -> Node:
    record = node_record(context.read, node)
    if record is None:
        raise Rejection("no_such_node", "there never was a node of this id")
    return record


def _open(context: Context, organisation: str) -> list[OpenProposal]:
    found = context.get_as(OpenProposals, open_path(organisation))
    return [] if found is None else found.proposals


def _put_open(context: Context, organisation: str, proposals: list[OpenProposal]) -> None:
    context.put(open_path(organisation), OpenProposals(FORMAT, proposals))


def _ids(read: Read, path: str) -> list[str]:
    return _must(read_as(read, Ids, path)).ids


def _add_id(context: Context, path: str, added: str) -> None:
    ids = list(_ids(context.read, path))
    insort(ids, added)
    context.put(path, Ids(FORMAT, ids))


def _makes(before: Configuration, pending: Pending, change: Change) -> bool:
    try:
        return next_change(before, pending) == change
    except Rejection:
        return False


def _must(found: T | None) -> T:
    assert found is not None, "genesis wrote it, or an earlier block"
    return found
