"""The design `private-zonelist-per-node` (F3): one private list a node, for the owner alone.

Models the minimised last version of the private-node series: each private node has a list that holds only
itself, and a request for it must carry `__GFP_THISNODE` as well (`folio_alloc_node_private`), or be a
contiguous range with the explicit private flag (`ACR_FLAGS_PRIVATE`). A failure is returned to the caller:
no fallback, no OOM kill. Users' policies, moves, huge page pools and demotion do not exist for private nodes;
reclaim, compaction and writing in place are what a mask may hold.
"""

from __future__ import annotations

import errno

from privmem.scheduler.abi import Feature, Reason
from privmem.scheduler.cpuset import CpusetNodes
from privmem.scheduler.isolation import lists, structural
from privmem.scheduler.isolation.design import Claim, Service
from privmem.scheduler.isolation.structural import Rules
from privmem.scheduler.mempolicy import PolicyNodes
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, Zonelist, ZonelistKind, Zonelists

_RULES = Rules(
    bits=Feature.COMPACTION | Feature.RECLAIM | Feature.USER_WRITE,
    needs={
        Service.RECLAIM: Feature.RECLAIM,
        Service.MADVISE: Feature.RECLAIM,
        Service.DISPLACE: Feature.RECLAIM,
        Service.COMPACTION: Feature.COMPACTION,
        Service.USER_WRITE: Feature.USER_WRITE,
        Service.HOTUNPLUG: Feature.NONE,
        Service.MLOCK: Feature.NONE,
    },
    doors={Reason.OWNER: Feature.NONE, Reason.CONTIG: Feature.NONE, Reason.NETWORK: Feature.NONE},
)


class PrivateZonelistPerNode:
    """See the module's docstring. Immutable."""

    name = "private-zonelist-per-node"
    label = "F3"
    title = "one private zonelist a node, THISNODE mandatory, failure returned (F3)"
    scrubs_policies = True

    def grant(self, wish: Feature) -> Feature:
        """The three bits that are left."""
        return _RULES.grant(wish)

    def claim_error(self, features: Feature) -> int:
        """COMMON and unknown bits are no private mask."""
        return -errno.EINVAL if features & ~_RULES.bits else 0

    def reclaim_error(self, held: Claim | None, has_memory: bool, claim: Claim) -> int:
        """The first claim fixes the mask: an equal one joins, another one is refused."""
        return structural.equal_mask_joins(held, has_memory, claim, -errno.EBUSY)

    def zonelists(self, topology: HostTopology) -> Zonelists:
        """Ordinary lists hold general nodes only; each private node has a private list of its own."""
        general = lists.closed(topology)
        return Zonelists(general.fallback, general.nofallback, lists.alone(topology))

    def kind(self, topology: HostTopology, request: AllocRequest) -> ZonelistKind:
        """The private list for an owner who asks for it."""
        return structural.kind(_RULES, topology, request)

    def candidates(
        self, topology: HostTopology, lists_: Zonelists, request: AllocRequest, mems_allowed: int | None
    ) -> Zonelist:
        """Walk the chosen list; on the private one a folio's request without THISNODE finds nothing."""
        kind = self.kind(topology, request)
        if kind is ZonelistKind.PRIVATE and not request.this_node and request.reason is not Reason.CONTIG:
            return ()
        return lists.walk(topology, lists_, kind, request, mems_allowed)

    def rule(self, topology: HostTopology, request: AllocRequest) -> str:
        """Which list, and what it lacks."""
        built = self.zonelists(topology)
        kind = self.kind(topology, request)
        if kind is ZonelistKind.PRIVATE and not request.this_node and request.reason is not Reason.CONTIG:
            return f"private zonelist of node {request.nid}: refused, the request lacks THISNODE"
        reached = self.candidates(topology, built, request, None)
        return structural.rule(_RULES, topology, built, request, reached)

    def invited(self, request: AllocRequest, node: NodeTopology) -> bool:
        """The owner alone, on the node that it asked for."""
        return structural.invited(_RULES, request, node)

    def policy_nodes(self, topology: HostTopology) -> PolicyNodes:
        """General nodes only; a private one beside them drops out."""
        return PolicyNodes(memory=topology.public, uncounted=topology.private, no_home=topology.private)

    def cpuset_nodes(self, topology: HostTopology) -> CpusetNodes:
        """Any node may be named and is kept as requested; the parent's general nodes are added when none is."""
        return CpusetNodes(
            topology.online,
            adds_general=topology.public,
            migrates=topology.public,
            memory=topology.memory,
        )

    def move_targets(self, topology: HostTopology) -> int:
        """General nodes only."""
        return topology.public

    def allows(self, service: Service, node: NodeTopology) -> bool:
        """By feature, of which few are left."""
        return _RULES.allows(service, node)

    def node_states(self, topology: HostTopology) -> dict[str, int]:
        """Every node with memory, and the common ones."""
        return {"has_memory": topology.memory, "has_common_memory": topology.public}
