"""The design `private-zonelist` (F0, F1, F2): feature masks, and one separate list over all memory nodes.

Models the "features" versions of the private-node series. Isolation is structural: a private node is in no
ordinary list, not even its own, so that no flag and no node id reaches it; `__GFP_THISNODE` on it finds
nothing. A caller whose reason was checked against the node's features selects ZONELIST_PRIVATE, a union over
every memory node, in which only the request's nodemask (and THISNODE) confines it. F0 still has bits for NUMA
balancing and long-term pins; F1 (the default) is what is documented best; F2 renames PUBLIC to COMMON, adds
bits for compaction and contiguous ranges, and keeps a request for private nodes in a cpuset as it was made.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from privmem.scheduler.abi import Feature, Reason
from privmem.scheduler.cpuset import CpusetNodes
from privmem.scheduler.isolation import lists, structural
from privmem.scheduler.isolation.design import Claim, Service
from privmem.scheduler.isolation.structural import Rules
from privmem.scheduler.mempolicy import PolicyNodes
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, Zonelist, ZonelistKind, Zonelists

_BITS = Feature.RECLAIM | Feature.DEMOTION | Feature.USER_NUMA | Feature.USER_WRITE
_NEEDS: dict[Service, Feature] = {
    Service.RECLAIM: Feature.RECLAIM,
    Service.MADVISE: Feature.RECLAIM,
    Service.COMPACTION: Feature.RECLAIM,
    Service.DISPLACE: Feature.RECLAIM,
    Service.OOM_MEMORY: Feature.RECLAIM,
    Service.DEMOTION_TARGET: Feature.DEMOTION,
    Service.DEMOTION_SOURCE: Feature.DEMOTION,
    Service.TIER: Feature.DEMOTION,
    Service.USER_MOVE: Feature.USER_NUMA,
    Service.HUGETLB: Feature.USER_NUMA,
    Service.USER_WRITE: Feature.USER_WRITE,
    Service.HOTUNPLUG: Feature.NONE,
    Service.MLOCK: Feature.NONE,
}
_DOORS: dict[Reason, Feature] = {
    Reason.POLICY: Feature.USER_NUMA,
    Reason.SWAPIN: Feature.USER_NUMA,
    Reason.PAGETABLE: Feature.USER_NUMA,
    Reason.USER_MOVE: Feature.USER_NUMA,
    Reason.HUGETLB: Feature.USER_NUMA,
    Reason.DEMOTION: Feature.DEMOTION,
    Reason.OWNER: Feature.NONE,
    Reason.CONTIG: Feature.NONE,
    Reason.NETWORK: Feature.NONE,
}


@dataclass(frozen=True, slots=True)
class Variant:
    """What tells the sub-variants apart."""

    name: str
    label: str
    rules: Rules
    #: Whether a cpuset that names only private nodes is kept as it was written, rather than refused.
    keeps_requests: bool
    #: The state of nodes that ordinary allocations reach, and whether users' nodes have a file of their own.
    general_state: str
    shows_user: bool


_F0 = Variant(
    "private-zonelist:F0",
    "F0",
    Rules(
        _BITS | Feature.NUMA_BALANCING | Feature.LONGTERM_PIN,
        _NEEDS | {Service.NUMA_BALANCING: Feature.NUMA_BALANCING, Service.LONGTERM_PIN: Feature.LONGTERM_PIN},
        _DOORS,
    ),
    keeps_requests=False,
    general_state="has_public_memory",
    shows_user=True,
)
_F1 = Variant(
    "private-zonelist",
    "F1",
    Rules(_BITS, _NEEDS, _DOORS),
    keeps_requests=False,
    general_state="has_public_memory",
    shows_user=True,
)
_F2 = Variant(
    "private-zonelist:F2",
    "F2",
    Rules(
        _BITS | Feature.COMPACTION | Feature.CONTIG_ALLOC,
        _NEEDS | {Service.COMPACTION: Feature.COMPACTION},
        _DOORS,
    ),
    keeps_requests=True,
    general_state="has_common_memory",
    shows_user=False,
)


class PrivateZonelist:
    """See the module's docstring. Immutable."""

    scrubs_policies = True

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.name = variant.name
        self.label = variant.label
        self.title = f"feature masks and one private zonelist over all memory nodes ({variant.label})"

    def grant(self, wish: Feature) -> Feature:
        """The bits of the mask that a private node can have."""
        return self.variant.rules.grant(wish)

    def claim_error(self, features: Feature) -> int:
        """DEMOTION needs RECLAIM and is refused outright without it; PUBLIC and unknown bits are no private
        mask.
        """
        if features & ~self.variant.rules.bits:
            return -errno.EINVAL
        if features & Feature.DEMOTION and not features & Feature.RECLAIM:
            return -errno.EINVAL
        return 0

    def reclaim_error(self, held: Claim | None, has_memory: bool, claim: Claim) -> int:
        """The first claim fixes the mask: an equal one joins, another one is refused."""
        return structural.equal_mask_joins(held, has_memory, claim, -errno.EBUSY)

    def zonelists(self, topology: HostTopology) -> Zonelists:
        """Ordinary lists hold general nodes only; a private node has no list of its own; the private list
        is a union.
        """
        general = lists.closed(topology)
        return Zonelists(general.fallback, general.nofallback, lists.union(topology))

    def kind(self, topology: HostTopology, request: AllocRequest) -> ZonelistKind:
        """The private list for a reason with a door, when its caller selects it."""
        return structural.kind(self.variant.rules, topology, request)

    def candidates(
        self, topology: HostTopology, lists_: Zonelists, request: AllocRequest, mems_allowed: int | None
    ) -> Zonelist:
        """Walk the chosen list."""
        return lists.walk(topology, lists_, self.kind(topology, request), request, mems_allowed)

    def rule(self, topology: HostTopology, request: AllocRequest) -> str:
        """Which list, and what confines it."""
        built = self.zonelists(topology)
        reached = self.candidates(topology, built, request, None)
        return structural.rule(self.variant.rules, topology, built, request, reached)

    def invited(self, request: AllocRequest, node: NodeTopology) -> bool:
        """By the caller's door; the node must be named, or be the one that the owner asked for."""
        return structural.invited(self.variant.rules, request, node)

    def policy_nodes(self, topology: HostTopology) -> PolicyNodes:
        """General nodes, and with USER_NUMA private ones, the latter for MPOL_BIND only: other modes are
        narrowed.
        """
        user = topology.private & topology.with_feature(Feature.USER_NUMA)
        return PolicyNodes(
            memory=topology.public | user,
            private=user,
            bind_only=user,
            uncounted=topology.private & ~user,
            shown=~topology.private | user,
        )

    def cpuset_nodes(self, topology: HostTopology) -> CpusetNodes:
        """Private nodes may be named with USER_NUMA. A cpuset carries no choice of list, so that it must have a
        general node: F0 and F1 refuse one without; F2 keeps any request and adds the parent's.
        """
        kept = self.variant.keeps_requests
        closed = topology.private & ~topology.with_feature(Feature.USER_NUMA)
        return CpusetNodes(
            topology.online & ~closed,
            must_keep=0 if kept else topology.public,
            adds_general=topology.public if kept else 0,
            migrates=topology.public,
            memory=topology.memory,
        )

    def move_targets(self, topology: HostTopology) -> int:
        """General nodes and private ones with USER_NUMA."""
        return self.policy_nodes(topology).memory

    def allows(self, service: Service, node: NodeTopology) -> bool:
        """By feature."""
        return self.variant.rules.allows(service, node)

    def node_states(self, topology: HostTopology) -> dict[str, int]:
        """Every node with memory, the general ones, and (F0, F1) those that users may name."""
        states = {"has_memory": topology.memory, self.variant.general_state: topology.public}
        if self.variant.shows_user:
            states["has_user_memory"] = topology.with_feature(Feature.USER_NUMA)
        return states


VARIANTS = (PrivateZonelist(_F0), PrivateZonelist(_F1), PrivateZonelist(_F2))
