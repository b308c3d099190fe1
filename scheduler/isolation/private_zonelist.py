"""The design `private-zonelist`, variant F1: feature masks, and one separate list that spans all memory
nodes.

Models the "features" versions of the private-node series (variant F1). Isolation is structural: a private
node is in no ordinary list, not even its own, so that no flag and no node id reaches it; `__GFP_THISNODE`
on it finds nothing. A caller whose reason was checked against the node's features selects ZONELIST_PRIVATE,
a union over every memory node, in which only the request's nodemask (and THISNODE) confines it. Home nodes,
huge page pools and pins are left out.
"""

from __future__ import annotations

import errno

from privmem.scheduler import nodemask
from privmem.scheduler.abi import Feature, Reason
from privmem.scheduler.cpuset import CpusetNodes
from privmem.scheduler.isolation.design import Claim, Service
from privmem.scheduler.mempolicy import PolicyNodes
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import (
    AllocRequest,
    Zonelist,
    ZonelistKind,
    Zonelists,
    candidates,
    node_orders,
)

#: The feature that a service needs; without an entry no private node ever takes part.
_NEEDS: dict[Service, Feature] = {
    Service.RECLAIM: Feature.RECLAIM,
    Service.MADVISE: Feature.RECLAIM,
    Service.COMPACTION: Feature.RECLAIM,
    Service.DISPLACE: Feature.RECLAIM,
    Service.DEMOTION_TARGET: Feature.DEMOTION,
    Service.DEMOTION_SOURCE: Feature.DEMOTION,
    Service.TIER: Feature.DEMOTION,
    Service.USER_MOVE: Feature.USER_NUMA,
    Service.HUGETLB: Feature.USER_NUMA,
    Service.USER_WRITE: Feature.USER_WRITE,
    Service.HOTUNPLUG: Feature.NONE,
    Service.MLOCK: Feature.NONE,
}

#: The feature that a reason's caller checks before it selects the private list.
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


class PrivateZonelist:
    """See the module's docstring. Immutable."""

    name = "private-zonelist"
    scrubs_policies = True
    title = "feature masks and one private zonelist over all memory nodes (F1)"

    def grant(self, wish: Feature) -> Feature:
        """The five bits of the mask that a private node can have."""
        return wish & (Feature.ALL & ~Feature.PUBLIC)

    def reclaim_error(self, held: Claim | None, has_memory: bool, claim: Claim) -> int:
        """The first claim fixes the mask: an equal one joins, another one is refused."""
        if held is None:
            return -errno.EBUSY if has_memory else 0
        return 0 if held.features == claim.features else -errno.EBUSY

    def rule(self, topology: HostTopology, request: AllocRequest) -> str:
        """Which list, and what confines it."""
        if self.kind(topology, request) is ZonelistKind.PRIVATE:
            return "private zonelist, confined by the request's nodemask"
        return "ordinary zonelist: holds general nodes only"

    def invited(self, request: AllocRequest, node: NodeTopology) -> bool:
        """By the caller's door; the node must be named, or be the one that the owner asked for."""
        door = _DOORS.get(request.reason)
        return door is not None and node.features & door == door

    def node_states(self, topology: HostTopology) -> dict[str, int]:
        """F1: every node with memory, the public ones, and those that users may name."""
        user = topology.private & topology.with_feature(Feature.USER_NUMA)
        return {"has_memory": topology.memory, "has_public_memory": topology.public, "has_user_memory": user}

    def claim_error(self, features: Feature) -> int:
        """DEMOTION needs RECLAIM and is refused outright without it; PUBLIC and unknown bits are no private
        mask.
        """
        if features & Feature.PUBLIC or int(features) & ~int(Feature.ALL):
            return -errno.EINVAL
        if features & Feature.DEMOTION and not features & Feature.RECLAIM:
            return -errno.EINVAL
        return 0

    def zonelists(self, topology: HostTopology) -> Zonelists:
        """Ordinary lists hold general nodes only; a private node has no list of its own; the private list
        is a union.
        """
        nids = topology.nids
        return Zonelists(
            fallback=node_orders(topology, nids, topology.public),
            nofallback={nid: (nid,) for nid in nodemask.nodes(topology.public)},
            private=node_orders(topology, nids, topology.memory),
        )

    def kind(self, topology: HostTopology, request: AllocRequest) -> ZonelistKind:
        """The private list for a reason with a door, when the mask or THISNODE says that a private node is
        meant.
        """
        if request.reason in _DOORS and self._meant(request) & topology.private:
            return ZonelistKind.PRIVATE
        return ZonelistKind.NOFALLBACK if request.this_node else ZonelistKind.FALLBACK

    def candidates(
        self, topology: HostTopology, lists: Zonelists, request: AllocRequest, mems_allowed: int | None
    ) -> Zonelist:
        """Walk the chosen list; on the private one, nodes without the feature of the caller's door drop out.

        The kernel's callers check the feature before they ask; doing it here gives the same nodes, and no
        caller can forget.
        """
        kind = self.kind(topology, request)
        nids = candidates(topology, lists.of(kind, request.nid), request, mems_allowed)
        if kind is not ZonelistKind.PRIVATE:
            return nids
        granted = topology.with_feature(_DOORS[request.reason])
        return tuple(nid for nid in nids if nodemask.has(granted, nid))

    def policy_nodes(self, topology: HostTopology) -> PolicyNodes:
        """General nodes, and with USER_NUMA private ones, the latter for MPOL_BIND only: other modes are
        narrowed.
        """
        opted_in = topology.private & topology.with_feature(Feature.USER_NUMA)
        return PolicyNodes(memory=topology.public | opted_in, bind_only=opted_in)

    def cpuset_nodes(self, topology: HostTopology) -> CpusetNodes:
        """Private nodes may be named with USER_NUMA, but never alone: a cpuset carries no choice of list."""
        return CpusetNodes(self.policy_nodes(topology).memory, must_keep=topology.public)

    def move_targets(self, topology: HostTopology) -> int:
        """General nodes and private ones with USER_NUMA."""
        return self.policy_nodes(topology).memory

    def allows(self, service: Service, node: NodeTopology) -> bool:
        """By feature; NUMA balancing never touches a private node."""
        if not node.private:
            return True
        needed = _NEEDS.get(service)
        return needed is not None and node.features & needed == needed

    @staticmethod
    def _meant(request: AllocRequest) -> int:
        """The nodes that a request names: its mask, or the one node of THISNODE."""
        if request.this_node:
            return 1 << request.nid
        return request.nodemask or 0
