"""What the designs with a list of their own for private memory have in common.

Models the later versions of the private-node series (caps and features): a private node is in no ordinary
list, so that no flag, node id or mask of an ordinary request reaches it. A caller whose reason was checked
against the node's features selects ZONELIST_PRIVATE: a policy by the mark that it got when it was accepted,
moves, demotion and huge page pools by the node that they go to, the owner by asking for it. Isolation is in
the choice of the list alone: the walk checks nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from privmem.scheduler import nodemask
from privmem.scheduler.abi import Feature, Reason
from privmem.scheduler.isolation import lists
from privmem.scheduler.isolation.design import Claim, Service
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, Zonelist, ZonelistKind, Zonelists

#: Reasons of the owner: it asks for its private node in so many words.
OWNERS = (Reason.OWNER, Reason.CONTIG, Reason.NETWORK)
#: Reasons whose caller looks at the node that it goes to, and takes the list that this node has.
BY_TARGET = (Reason.DEMOTION, Reason.USER_MOVE, Reason.HUGETLB)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a variant says by tables."""

    #: The bits that a mask can have.
    bits: Feature
    #: The feature that a service needs; a service without an entry never works on a private node.
    needs: dict[Service, Feature]
    #: The feature that a reason's caller checks before it takes the private list; none without an entry.
    doors: dict[Reason, Feature]
    #: Bits that a wish brings along: (wished, implied).
    implied: tuple[tuple[Feature, Feature], ...] = field(default=())

    def grant(self, wish: Feature) -> Feature:
        """The bits of a wish that exist here, with those that they bring along."""
        for wished, brings in self.implied:
            if wish & wished:
                wish |= brings
        return wish & self.bits

    def allows(self, service: Service, node: NodeTopology) -> bool:
        """True for public nodes; by feature for private ones."""
        if not node.private:
            return True
        needed = self.needs.get(service)
        return needed is not None and node.features & needed == needed


def takes_private_list(rules: Rules, topology: HostTopology, request: AllocRequest) -> bool:
    """Whether the caller of a request selects ZONELIST_PRIVATE."""
    door = rules.doors.get(request.reason)
    if door is None:
        return False
    if request.private:
        return True
    if request.reason not in BY_TARGET or not request.this_node:
        return False
    return nodemask.has(topology.private & topology.with_feature(door), request.nid)


def kind(rules: Rules, topology: HostTopology, request: AllocRequest) -> ZonelistKind:
    """The private list for those who may take it; the ordinary ones for all others."""
    if takes_private_list(rules, topology, request):
        return ZonelistKind.PRIVATE
    return lists.ordinary_kind(request)


def invited(rules: Rules, request: AllocRequest, node: NodeTopology) -> bool:
    """By the caller's door, on a node that the request names; owners must ask for private memory."""
    door = rules.doors.get(request.reason)
    if door is None or (request.reason in OWNERS and not request.private):
        return False
    return lists.names(request, node.nid) and node.features & door == door


def rule(
    rules: Rules, topology: HostTopology, built: Zonelists, request: AllocRequest, reached: Zonelist
) -> str:
    """One sentence: the list, what it holds, and why a named private node is not reached."""
    chosen = kind(rules, topology, request)
    held = lists.node_text(built.of(chosen, request.nid))
    if chosen is ZonelistKind.PRIVATE:
        text = f"private zonelist of node {request.nid} ({held}), confined by "
        text += (
            "THISNODE" if request.this_node else "the nodemask" if request.nodemask is not None else "nothing"
        )
        return text + lists.absent(
            topology, request, reached, "not among what confines it, or not in the list"
        )
    title = "no-fallback" if chosen is ZonelistKind.NOFALLBACK else "fallback"
    why = "ordinary lists hold general nodes only"
    if request.reason not in rules.doors:
        why += f", and a request for {request.reason.name} has no other"
    elif request.reason in BY_TARGET:
        why += f", and the node lacks {rules.doors[request.reason]!r}"
    else:
        why += ", and the caller did not select the private one"
    text = f"{title} zonelist of node {request.nid} ({held})"
    return text + lists.absent(topology, request, reached, why)


def equal_mask_joins(held: Claim | None, has_memory: bool, claim: Claim, refused: int) -> int:
    """`node_features_register`: the first claim fixes the mask, an equal one joins, another is refused."""
    if held is None:
        return refused if has_memory else 0
    return 0 if held.features == claim.features else refused
