"""The design `gfp-private` (v4): a GFP flag, tested at every zone.

Models the first version of the private-node series (RFC v4, February 2026). `N_MEMORY_PRIVATE` excludes
`N_MEMORY`; general nodes' lists omit private nodes, a private node's fallback list begins with itself and
goes on with the general ones. Every walk skips a private zone unless the request carries `__GFP_PRIVATE`
(`AllocRequest.private`), whoever set it and whatever the node was meant to be: without THISNODE the node id
is a preference only. Services work on a node by the bits of its ops (`NP_OPS_*`). Left out: the callbacks
of the ops, whose presence the bit MIGRATION stands for.
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

#: `NP_OPS_*`; the absence of USER_WRITE is PROTECT_WRITE, USER_NUMA is MEMPOLICY.
BITS = (
    Feature.MIGRATION
    | Feature.USER_NUMA
    | Feature.DEMOTION
    | Feature.USER_WRITE
    | Feature.RECLAIM
    | Feature.NUMA_BALANCING
    | Feature.COMPACTION
    | Feature.LONGTERM_PIN
)
_NEED_MIGRATION = Feature.USER_NUMA | Feature.NUMA_BALANCING | Feature.COMPACTION
#: Wishes that a driver of this version can only grant with the two migration callbacks in place.
_BRING_MIGRATION = _NEED_MIGRATION | Feature.DEMOTION | Feature.HOTUNPLUG

#: The bit that a service needs; without an entry no private node ever takes part, and no bit changes that.
_NEEDS: dict[Service, Feature] = {
    Service.RECLAIM: Feature.RECLAIM,
    Service.DEMOTION_TARGET: Feature.DEMOTION,
    Service.TIER: Feature.DEMOTION,
    Service.NUMA_BALANCING: Feature.NUMA_BALANCING,
    Service.USER_MOVE: Feature.MIGRATION,
    Service.USER_WRITE: Feature.USER_WRITE,
    Service.COMPACTION: Feature.COMPACTION,
    Service.LONGTERM_PIN: Feature.LONGTERM_PIN,
    Service.PIN_MIGRATE: Feature.MIGRATION,
    Service.DAMON: Feature.MIGRATION,
    Service.HOTUNPLUG: Feature.MIGRATION,
    Service.DISPLACE: Feature.MIGRATION,
    Service.MAPPED_FILE: Feature.USER_NUMA,
    Service.OOM_MEMORY: Feature.RECLAIM | Feature.DEMOTION,
}

#: Who passes the flag with the right to: the bit that the node must have.
_FLAGGED: dict[Reason, Feature] = {
    Reason.POLICY: Feature.USER_NUMA,
    Reason.SWAPIN: Feature.USER_NUMA,
    Reason.PAGETABLE: Feature.USER_NUMA,
    Reason.PAGECACHE: Feature.USER_NUMA,
    Reason.USER_MOVE: Feature.MIGRATION,
    Reason.DEMOTION: Feature.DEMOTION,
    Reason.OWNER: Feature.NONE,
    Reason.CONTIG: Feature.NONE,
    Reason.NETWORK: Feature.NONE,
}
#: Callers that hand the page to the target's `migrate_to`, which allocates with the flag.
_MIGRATE_TO = (Reason.DEMOTION, Reason.USER_MOVE)


class GfpPrivate:
    """See the module's docstring. Immutable."""

    name = "gfp-private"
    label = "v4"
    title = "a GFP flag, tested at every zone (v4)"
    scrubs_policies = False

    def grant(self, wish: Feature) -> Feature:
        """The bits of the ops, with MIGRATION where a wish needs its callbacks."""
        if wish & _BRING_MIGRATION:
            wish |= Feature.MIGRATION
        return wish & BITS

    def claim_error(self, features: Feature) -> int:
        """`node_private_set_ops`: policies, NUMA balancing and compaction need MIGRATION; a node named in
        policies cannot be write-protected.
        """
        if features & ~BITS:
            return -errno.EINVAL
        if features & _NEED_MIGRATION and not features & Feature.MIGRATION:
            return -errno.EINVAL
        if features & Feature.USER_NUMA and not features & Feature.USER_WRITE:
            return -errno.EINVAL
        return 0

    def reclaim_error(self, held: Claim | None, has_memory: bool, claim: Claim) -> int:
        """`node_private_register`: one owner a node, who may say so twice; never a node with memory."""
        if held is None:
            return -errno.EBUSY if has_memory else 0
        return 0 if held.owner == claim.owner else -errno.EBUSY

    def zonelists(self, topology: HostTopology) -> Zonelists:
        """General nodes' lists omit private nodes; a private node's fallback list begins with itself."""
        general = lists.closed(topology)
        own = {nid: (nid,) for nid in nodemask.nodes(topology.private)}
        behind = {nid: (nid, *general.fallback[nid]) for nid in own}
        return Zonelists({**general.fallback, **behind}, {**general.nofallback, **own}, {})

    def kind(self, topology: HostTopology, request: AllocRequest) -> ZonelistKind:
        """There are only Linux's two lists; the flag is no list."""
        return lists.ordinary_kind(request)

    def candidates(
        self, topology: HostTopology, lists_: Zonelists, request: AllocRequest, mems_allowed: int | None
    ) -> Zonelist:
        """Walk the list of the preferred node, or of the mask's first node when a flagged request prefers one
        outside of its mask; private zones drop out without the flag.
        """
        chosen = lists_.of(self.kind(topology, request), self._start(request))
        nids = candidates(topology, chosen, request, mems_allowed)
        if self._flagged(topology, request):
            return nids
        return tuple(nid for nid in nids if not nodemask.has(topology.private, nid))

    @staticmethod
    def _flagged(topology: HostTopology, request: AllocRequest) -> bool:
        """Whether `__GFP_PRIVATE` is set when the zones are looked at: by the caller (the slab allocator drops
        it), or by the target's `migrate_to`.
        """
        if request.reason in _MIGRATE_TO and request.this_node:
            able = topology.private & topology.with_feature(_FLAGGED[request.reason])
            return nodemask.has(able, request.nid)
        return request.private and request.reason is not Reason.SLAB

    @staticmethod
    def _start(request: AllocRequest) -> int:
        """`policy_node`: a marked policy that does not hold the preferred node starts at its first one."""
        mask = request.nodemask
        if not request.private or request.this_node or not mask or nodemask.has(mask, request.nid):
            return request.nid
        return nodemask.first(mask)

    def rule(self, topology: HostTopology, request: AllocRequest) -> str:
        """The list, and what the flag or its absence does."""
        built = self.zonelists(topology)
        start = self._start(request)
        chosen = self.kind(topology, request)
        title = "no-fallback" if chosen is ZonelistKind.NOFALLBACK else "fallback"
        reached = self.candidates(topology, built, request, None)
        text = f"{title} zonelist of node {start} ({lists.node_text(built.of(chosen, start))})"
        if self._flagged(topology, request):
            text += ", with __GFP_PRIVATE: every private zone in it is open"
            return text + lists.absent(topology, request, reached, "not in this list")
        why = (
            "the slab allocator skips private nodes" if request.private else "the request lacks __GFP_PRIVATE"
        )
        return text + lists.absent(topology, request, reached, why)

    def invited(self, request: AllocRequest, node: NodeTopology) -> bool:
        """Whoever passes the flag with the right to, for a node that he names and that opted in."""
        door = _FLAGGED.get(request.reason)
        if door is None or node.features & door != door or not lists.names(request, node.nid):
            return False
        return request.private or request.reason in _MIGRATE_TO

    def policy_nodes(self, topology: HostTopology) -> PolicyNodes:
        """General nodes and those with MEMPOLICY, in every mode; a mask with any other private node is refused
        as a whole.
        """
        user = topology.private & topology.with_feature(Feature.USER_NUMA)
        return PolicyNodes(
            memory=topology.public | user,
            private=user,
            refused=topology.private & ~user,
            uncounted=topology.private & ~user,
            shown=~topology.private | user,
        )

    def cpuset_nodes(self, topology: HostTopology) -> CpusetNodes:
        """All nodes with memory are tracked; only private ones would leave a task without ordinary memory."""
        return CpusetNodes(
            topology.online, must_keep=topology.public, migrates=topology.public, memory=topology.memory
        )

    def move_targets(self, topology: HostTopology) -> int:
        """General nodes and private ones that have `migrate_to`."""
        return topology.public | topology.private & topology.with_feature(Feature.MIGRATION)

    def allows(self, service: Service, node: NodeTopology) -> bool:
        """By the bits of the ops."""
        if not node.private:
            return True
        needed = _NEEDS.get(service)
        return needed is not None and node.features & needed == needed

    def node_states(self, topology: HostTopology) -> dict[str, int]:
        """N_MEMORY excludes private nodes; its file also shows those that users may name."""
        user = topology.private & topology.with_feature(Feature.USER_NUMA)
        return {"has_memory": topology.public | user, "has_private_memory": topology.private}
