"""The design `caps` (caps-a, -b, -c): a private list, opened service by service with capability bits.

Models PATCH v5 "Private Memory NUMA Nodes" (July 2026) and what followed: the base does node claim, allocator
isolation and the OOM rule; each service asks for its bit. Private nodes are in no ordinary list; code that
checked a bit calls for the private list, which spans all nodes with memory, so that the request's nodemask
alone confines it. caps-a has separate bits for policies (USER_NUMA here) and user migration (MIGRATION);
caps-b has one for both. In these two N_MEMORY excludes private nodes, and cpusets do not govern them; caps-c
(the default) has all memory in N_MEMORY, adds bits for KSM, collapse, DAMON and huge page pools, lets cpusets
govern, and refuses a private node in any mode but bind.
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

_BASE_BITS = (
    Feature.RECLAIM
    | Feature.DEMOTION
    | Feature.USER_NUMA
    | Feature.USER_WRITE
    | Feature.HOTUNPLUG
    | Feature.LONGTERM_PIN
)
_BASE_NEEDS: dict[Service, Feature] = {
    Service.RECLAIM: Feature.RECLAIM,
    Service.MADVISE: Feature.RECLAIM,
    Service.COMPACTION: Feature.RECLAIM,
    Service.DISPLACE: Feature.RECLAIM,
    Service.OOM_MEMORY: Feature.RECLAIM,
    Service.DEMOTION_TARGET: Feature.DEMOTION,
    Service.DEMOTION_SOURCE: Feature.DEMOTION,
    Service.TIER: Feature.DEMOTION,
    Service.USER_MOVE: Feature.USER_NUMA,
    Service.USER_WRITE: Feature.USER_WRITE,
    Service.HUGETLB: Feature.USER_NUMA,
    Service.LONGTERM_PIN: Feature.LONGTERM_PIN,
    Service.HOTUNPLUG: Feature.HOTUNPLUG,
    Service.MLOCK: Feature.NONE,
}
_BASE_DOORS: dict[Reason, Feature] = {
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
    #: Whether cpusets govern private nodes.
    governed: bool
    #: Whether a mode other than bind that names a private node is refused, rather than narrowed.
    bind_or_refuse: bool
    #: Whether N_MEMORY excludes private nodes.
    exclusive: bool


_A = Variant(
    "caps:a",
    "caps-a",
    Rules(
        _BASE_BITS | Feature.MIGRATION,
        _BASE_NEEDS | {Service.USER_MOVE: Feature.MIGRATION},
        _BASE_DOORS | {Reason.USER_MOVE: Feature.MIGRATION},
        implied=((Feature.USER_NUMA, Feature.MIGRATION),),
    ),
    governed=False,
    bind_or_refuse=False,
    exclusive=True,
)
_B = Variant(
    "caps:b",
    "caps-b",
    Rules(
        _BASE_BITS | Feature.NUMA_BALANCING,
        _BASE_NEEDS | {Service.NUMA_BALANCING: Feature.NUMA_BALANCING, Service.COLLAPSE: Feature.USER_NUMA},
        _BASE_DOORS | {Reason.COLLAPSE: Feature.USER_NUMA},
    ),
    governed=False,
    bind_or_refuse=False,
    exclusive=True,
)
_C_BITS = Feature.DAMON | Feature.KSM | Feature.COLLAPSE | Feature.HUGETLB | Feature.NUMA_BALANCING
_C = Variant(
    "caps",
    "caps-c",
    Rules(
        _BASE_BITS | _C_BITS | Feature.PUBLIC,
        _BASE_NEEDS
        | {
            Service.NUMA_BALANCING: Feature.NUMA_BALANCING,
            Service.COLLAPSE: Feature.COLLAPSE,
            Service.KSM: Feature.KSM,
            Service.DAMON: Feature.DAMON,
            Service.HUGETLB: Feature.HUGETLB,
        },
        _BASE_DOORS
        | {
            Reason.COLLAPSE: Feature.COLLAPSE,
            Reason.KSM: Feature.KSM,
            Reason.HUGETLB: Feature.HUGETLB,
        },
    ),
    governed=True,
    bind_or_refuse=True,
    exclusive=False,
)


class Caps:
    """See the module's docstring. Immutable."""

    scrubs_policies = True

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.name = variant.name
        self.label = variant.label
        self.title = f"capability bits, one private zonelist over all memory nodes ({variant.label})"

    def grant(self, wish: Feature) -> Feature:
        """The bits of the variant; never the marker of an ordinary node."""
        return self.variant.rules.grant(wish) & ~Feature.PUBLIC

    def claim_error(self, features: Feature) -> int:
        """DEMOTION needs RECLAIM; the marker of an ordinary node (caps-c FALLBACK) needs all the others, and then
        the node is no private one.
        """
        bits = self.variant.rules.bits
        if features & ~bits:
            return -errno.EINVAL
        if features & Feature.PUBLIC and features != bits:
            return -errno.EINVAL
        if features & Feature.DEMOTION and not features & Feature.RECLAIM:
            return -errno.EINVAL
        return 0

    def reclaim_error(self, held: Claim | None, has_memory: bool, claim: Claim) -> int:
        """The same owner with the same mask may say so twice; nobody else, and never a node with memory."""
        if held is None:
            return -errno.EBUSY if has_memory else 0
        return 0 if held == claim else -errno.EBUSY

    def zonelists(self, topology: HostTopology) -> Zonelists:
        """Ordinary lists hold general nodes only; the private list is a union."""
        general = lists.closed(topology)
        return Zonelists(general.fallback, general.nofallback, lists.union(topology))

    def kind(self, topology: HostTopology, request: AllocRequest) -> ZonelistKind:
        """The private list for code that checked the bit of its service."""
        return structural.kind(self.variant.rules, topology, request)

    def candidates(
        self, topology: HostTopology, lists_: Zonelists, request: AllocRequest, mems_allowed: int | None
    ) -> Zonelist:
        """Walk the chosen list; where cpusets do not govern private nodes, they never cut one off."""
        if mems_allowed is not None and not self.variant.governed:
            mems_allowed |= topology.private
        return lists.walk(topology, lists_, self.kind(topology, request), request, mems_allowed)

    def rule(self, topology: HostTopology, request: AllocRequest) -> str:
        """Which list, and what confines it."""
        built = self.zonelists(topology)
        reached = self.candidates(topology, built, request, None)
        return structural.rule(self.variant.rules, topology, built, request, reached)

    def invited(self, request: AllocRequest, node: NodeTopology) -> bool:
        """By the bit of the caller's service, on a node that it names."""
        return structural.invited(self.variant.rules, request, node)

    def policy_nodes(self, topology: HostTopology) -> PolicyNodes:
        """General nodes, and for binds private ones with the policy bit."""
        user = topology.private & topology.with_feature(Feature.USER_NUMA)
        reached = user | topology.private & self.move_targets(topology)
        return PolicyNodes(
            memory=topology.public | user,
            private=user,
            bind_only=user,
            refused_unless_bind=topology.private if self.variant.bind_or_refuse else 0,
            ungoverned=0 if self.variant.governed else reached,
            uncounted=topology.private & ~user,
            shown=~topology.private | user,
        )

    def cpuset_nodes(self, topology: HostTopology) -> CpusetNodes:
        """Governed: private nodes with the bit, never alone. Otherwise any, and without effect."""
        if not self.variant.governed:
            return CpusetNodes(
                topology.online, inert=topology.private, migrates=topology.public, memory=topology.memory
            )
        closed = topology.private & ~topology.with_feature(Feature.USER_NUMA)
        return CpusetNodes(
            topology.online & ~closed,
            must_keep=topology.public,
            migrates=topology.public,
            memory=topology.memory,
        )

    def move_targets(self, topology: HostTopology) -> int:
        """General nodes, and private ones that users may move to."""
        bit = self.variant.rules.doors[Reason.USER_MOVE]
        return topology.public | topology.private & topology.with_feature(bit)

    def allows(self, service: Service, node: NodeTopology) -> bool:
        """By bit."""
        return self.variant.rules.allows(service, node)

    def node_states(self, topology: HostTopology) -> dict[str, int]:
        """caps-a and -b: N_MEMORY excludes private nodes; caps-c: it has all, N_MEMORY_FALLBACK the general ones,
        N_MEMORY_USER_NUMA those that users may name.
        """
        if self.variant.exclusive:
            return {"has_memory": topology.public, "has_private_memory": topology.private}
        return {
            "has_memory": topology.memory,
            "has_fallback_memory": topology.public,
            "has_user_memory": topology.with_feature(Feature.USER_NUMA),
        }


VARIANTS = (Caps(_A), Caps(_B), Caps(_C))
