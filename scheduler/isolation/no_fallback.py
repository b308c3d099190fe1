"""The design `no-fallback` (nofb): no flag; a private node is only in its own list without fallback.

Models the experiment of June 2026: private nodes are taken off every fallback list, their own included, and
`__GFP_THISNODE` naming the node is the only door. It opens to everyone who sets it: object caches
(`kmalloc_node`), pools of huge pages and contiguous ranges do so by themselves, and land there uninvited.
Users may name a node whose owner turned that knob on, in the one policy that THISNODE can express: a bind to
this node alone.

The variant `no-fallback:task` is the preview of the task-scoped marker (`memalloc`): THISNODE alone no longer
opens the door, the task's marker (`AllocRequest.private`) does, for whatever the task asks while it is set,
nested allocations included.
"""

from __future__ import annotations

import errno

from privmem.scheduler import nodemask
from privmem.scheduler.abi import Feature, Reason
from privmem.scheduler.cpuset import CpusetNodes
from privmem.scheduler.isolation import lists
from privmem.scheduler.isolation.design import Claim, Service
from privmem.scheduler.mempolicy import PolicyNodes
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, Zonelist, ZonelistKind, Zonelists, candidates

#: A knob a service; the experiment did not say more.
BITS = (
    Feature.RECLAIM
    | Feature.DEMOTION
    | Feature.USER_NUMA
    | Feature.USER_WRITE
    | Feature.NUMA_BALANCING
    | Feature.LONGTERM_PIN
    | Feature.HOTUNPLUG
)

_NEEDS: dict[Service, Feature] = {
    Service.RECLAIM: Feature.RECLAIM,
    Service.MADVISE: Feature.RECLAIM,
    Service.COMPACTION: Feature.RECLAIM,
    Service.OOM_MEMORY: Feature.RECLAIM,
    Service.DEMOTION_TARGET: Feature.DEMOTION,
    Service.DEMOTION_SOURCE: Feature.DEMOTION,
    Service.TIER: Feature.DEMOTION,
    Service.NUMA_BALANCING: Feature.NUMA_BALANCING,
    Service.USER_MOVE: Feature.USER_NUMA,
    Service.USER_WRITE: Feature.USER_WRITE,
    Service.LONGTERM_PIN: Feature.LONGTERM_PIN,
    Service.HOTUNPLUG: Feature.HOTUNPLUG,
    Service.MLOCK: Feature.NONE,
    # Nobody checks these two: what they allocate or move away, they name by THISNODE or by frame number.
    Service.HUGETLB: Feature.NONE,
    Service.DISPLACE: Feature.NONE,
}

_DOORS: dict[Reason, Feature] = {
    Reason.POLICY: Feature.USER_NUMA,
    Reason.SWAPIN: Feature.USER_NUMA,
    Reason.PAGETABLE: Feature.USER_NUMA,
    Reason.USER_MOVE: Feature.USER_NUMA,
    Reason.DEMOTION: Feature.DEMOTION,
    Reason.OWNER: Feature.NONE,
    Reason.CONTIG: Feature.NONE,
    Reason.NETWORK: Feature.NONE,
}
_OWNERS = (Reason.OWNER, Reason.CONTIG, Reason.NETWORK)
#: Callers that take the marker for the target that they were given.
_BY_TARGET = (Reason.DEMOTION, Reason.USER_MOVE)


class NoFallback:
    """See the module's docstring. Immutable."""

    label = "nofb"
    scrubs_policies = False

    def __init__(self, marker: bool = False) -> None:
        self.marker = marker
        self.name = "no-fallback:task" if marker else "no-fallback"
        how = "a marker on the task opens it (preview)" if marker else "THISNODE opens it to everyone"
        self.title = f"a list without fallback, no flag: {how} (nofb)"

    def grant(self, wish: Feature) -> Feature:
        """The knobs of a wish."""
        return wish & BITS

    def claim_error(self, features: Feature) -> int:
        """Knobs do not depend on each other."""
        return -errno.EINVAL if features & ~BITS else 0

    def reclaim_error(self, held: Claim | None, has_memory: bool, claim: Claim) -> int:
        """As in the first version: one owner a node, who may say so twice; never a node with memory."""
        if held is None:
            return -errno.EBUSY if has_memory else 0
        return 0 if held.owner == claim.owner else -errno.EBUSY

    def zonelists(self, topology: HostTopology) -> Zonelists:
        """Fallback lists hold general nodes only; every node has its own list without fallback."""
        general = lists.closed(topology)
        return Zonelists(general.fallback, {**general.nofallback, **lists.alone(topology)}, {})

    def kind(self, topology: HostTopology, request: AllocRequest) -> ZonelistKind:
        """The list without fallback for THISNODE, and for a policy that means one private node."""
        if request.this_node or self._target(topology, request) >= 0:
            return ZonelistKind.NOFALLBACK
        return ZonelistKind.FALLBACK

    @staticmethod
    def _target(topology: HostTopology, request: AllocRequest) -> int:
        """The private node that a request without THISNODE is confined to by asking for private memory: a policy
        names it in its mask, an owner as the preferred node; -1 for none.
        """
        if not request.private or request.this_node:
            return -1
        mask = 1 << request.nid if request.nodemask is None else request.nodemask
        meant = mask & topology.private
        return nodemask.first(meant) if nodemask.weight(mask) == 1 and meant else -1

    def candidates(
        self, topology: HostTopology, lists_: Zonelists, request: AllocRequest, mems_allowed: int | None
    ) -> Zonelist:
        """Walk the chosen list; with the marker's variant, one without the marker finds nothing on it."""
        target = self._target(topology, request)
        if target < 0 and self._refuses(topology, request):
            return ()
        start = request.nid if target < 0 else target
        built = lists_.of(self.kind(topology, request), start)
        if mems_allowed is not None:
            mems_allowed |= topology.private  # cpusets do not govern private nodes here
        return candidates(topology, built, request, mems_allowed)

    def _refuses(self, topology: HostTopology, request: AllocRequest) -> bool:
        """THISNODE on a private node by somebody without the marker, where that is needed."""
        if not self.marker or not request.this_node or not nodemask.has(topology.private, request.nid):
            return False
        door = _DOORS.get(request.reason)
        opted = door is not None and nodemask.has(topology.with_feature(door), request.nid)
        return not (request.private or (request.reason in _BY_TARGET and opted))

    def rule(self, topology: HostTopology, request: AllocRequest) -> str:
        """The list, and what opened or closed it."""
        built = self.zonelists(topology)
        target = self._target(topology, request)
        start = request.nid if target < 0 else target
        chosen = self.kind(topology, request)
        title = "no-fallback" if chosen is ZonelistKind.NOFALLBACK else "fallback"
        reached = self.candidates(topology, built, request, None)
        text = f"{title} zonelist of node {start} ({lists.node_text(built.of(chosen, start))})"
        if chosen is ZonelistKind.NOFALLBACK and set(reached) & set(nodemask.nodes(topology.private)):
            return text + (", opened by the task's marker" if self.marker else ", opened by naming the node")
        why = "fallback lists hold general nodes only"
        if chosen is ZonelistKind.NOFALLBACK:
            why = "the task has no marker" if self.marker else "mask, zone or cpuset leave it out"
        return text + lists.absent(topology, request, reached, why)

    def invited(self, request: AllocRequest, node: NodeTopology) -> bool:
        """The owner asked for it, or the user named a node whose knob is on."""
        door = _DOORS.get(request.reason)
        if door is None or (request.reason in _OWNERS and not request.private):
            return False
        return lists.names(request, node.nid) and node.features & door == door

    def policy_nodes(self, topology: HostTopology) -> PolicyNodes:
        """A bind to one node with the knob; a private node in any other company is refused."""
        user = topology.private & topology.with_feature(Feature.USER_NUMA)
        return PolicyNodes(
            memory=topology.public | user,
            private=user,
            bind_only=user,
            alone=user,
            refused=topology.private & ~user,
            refused_unless_bind=topology.private,
            ungoverned=user,
            uncounted=topology.private & ~user,
        )

    def cpuset_nodes(self, topology: HostTopology) -> CpusetNodes:
        """N_MEMORY excludes private nodes, so that cpusets know nothing of them."""
        return CpusetNodes(
            topology.online, inert=topology.private, migrates=topology.public, memory=topology.memory
        )

    def move_targets(self, topology: HostTopology) -> int:
        """General nodes and those with the knob."""
        return topology.public | topology.private & topology.with_feature(Feature.USER_NUMA)

    def allows(self, service: Service, node: NodeTopology) -> bool:
        """By knob."""
        if not node.private:
            return True
        needed = _NEEDS.get(service)
        return needed is not None and node.features & needed == needed

    def node_states(self, topology: HostTopology) -> dict[str, int]:
        """Every node with memory is N_MEMORY: what walks it with THISNODE is the experiment's problem list."""
        return {"has_memory": topology.memory, "has_private_memory": topology.private}
