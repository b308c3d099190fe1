"""Memory tiers: nodes grouped by abstract distance, and where each node's cold pages go.

Models `mm/memory-tiers.c` of Linux 6.1: `establish_demotion_targets`, `find_create_memory_tier`,
`node_get_allowed_targets`, `node_is_toptier`; membership of private nodes is as in the feature series (F1:
a private node without DEMOTION belongs to no tier). Left out: tier devices in sysfs, adistance from HMAT.
The kernel picks at random among equally near targets; here the caller picks from the tuple by a counter of
its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from privmem.scheduler import nodemask
from privmem.scheduler.abi import Feature
from privmem.scheduler.topology import HostTopology

#: `MEMTIER_CHUNK_BITS` 7: 128 units of abstract distance make a tier.
CHUNK_BITS = 7
CHUNK = 1 << CHUNK_BITS
#: `MEMTIER_ADISTANCE_DRAM`, (4 * 128) + 64.
ADISTANCE_DRAM = 4 * CHUNK + (CHUNK >> 1)
#: `MEMTIER_DEFAULT_DAX_ADISTANCE` of drivers/dax/kmem.c, five times DRAM: also of a compressed-RAM node in
#: the series.
ADISTANCE_DAX = 5 * ADISTANCE_DRAM

#: Default abstract distance by device class. The kernel computes one from measured latency and bandwidth
#: where firmware tells them (Linux 6.7), in proportion to DRAM; the choices follow that proportion.
ADISTANCE_BY_CLASS: dict[str, int] = {
    "dram": ADISTANCE_DRAM,  # Linux 6.1 include/linux/memory-tiers.h
    "gpu": ADISTANCE_DRAM * 3 // 2,  # choice: coherent link, about half again DRAM's latency; tier 6
    "cxl": ADISTANCE_DRAM * 2,  # choice: direct-attached CXL answers in about twice DRAM's time; tier 9
    "nic": ADISTANCE_DRAM * 5 // 2,  # choice: buffers behind PCIe, beyond CXL; tier 11
    "compressed-ram": ADISTANCE_DAX,  # the series' CRAM service and dax/kmem default; tier 22
    "slow-distributed": ADISTANCE_DRAM * 10,  # choice: behind a network, twice dax; tier 45
}


@dataclass(frozen=True, slots=True)
class TierTable:
    """Tiers and demotion targets of one host."""

    #: (tier number, mask of its nodes), fastest first.
    tiers: tuple[tuple[int, int], ...]
    #: Node -> nearest nodes of the next tier, all at the same distance (`node_demotion[].preferred`).
    targets: dict[int, tuple[int, ...]]
    #: Node -> every node of every lower tier (`lower_tier_mask`): where demotion may fall back to.
    allowed: dict[int, int]
    #: Nodes in or above the slowest tier that has CPUs (`node_is_toptier`): promotion's destination.
    toptier: int

    def tier_of(self, nid: int) -> int | None:
        """Tier number of a node; None for one that belongs to no tier."""
        for number, mask in self.tiers:
            if nodemask.has(mask, nid):
                return number
        return None

    def is_toptier(self, nid: int) -> bool:
        """`node_is_toptier`."""
        return nodemask.has(self.toptier, nid)


def tier_number(adistance: int) -> int:
    """Number of the tier that an abstract distance falls into, as in `memory_tierN` of sysfs."""
    return adistance >> CHUNK_BITS


def members(topology: HostTopology) -> int:
    """Nodes that belong to a tier: those with memory, but private ones only with the feature DEMOTION."""
    return topology.with_feature(Feature.DEMOTION)


def build_tiers(
    topology: HostTopology, nodes: int | None = None, demotion: bool = True, terminal: int = 0
) -> TierTable:
    """Tier table over `nodes` (default: `members`). Without `demotion` (`demotion_enabled` off) nobody has
    a target, nor has a `terminal` node: pages of compressed RAM leave by a write or by being freed, never by
    demotion (CRAM, F1 and F3).
    """
    nodes = members(topology) if nodes is None else nodes & topology.memory
    by_number: dict[int, int] = {}
    for nid in nodemask.nodes(nodes):
        number = tier_number(topology.node(nid).adistance)
        by_number[number] = by_number.get(number, 0) | 1 << nid
    tiers = tuple(sorted(by_number.items()))
    targets: dict[int, tuple[int, ...]] = {}
    allowed: dict[int, int] = {}
    lower = nodes
    for position, (_, mask) in enumerate(tiers):
        lower &= ~mask
        following = tiers[position + 1][1] if position + 1 < len(tiers) else 0
        for nid in nodemask.nodes(mask):
            demotes = demotion and not nodemask.has(terminal, nid)
            targets[nid] = _nearest(topology, nid, following) if demotes else ()
            allowed[nid] = lower if demotes else 0
    return TierTable(tiers, targets, allowed, _toptier(topology, tiers))


def _nearest(topology: HostTopology, nid: int, following: int) -> tuple[int, ...]:
    """The nodes of the next tier that are as far as its first by `proximity`; the walk ends at the first
    that differs.
    """
    ranked = sorted(nodemask.nodes(following), key=lambda n: (topology.proximity(nid, n), n))
    nearest: list[int] = []
    for target in ranked:
        if nearest and topology.distance(nid, target) != topology.distance(nid, nearest[0]):
            break
        nearest.append(target)
    return tuple(nearest)


def _toptier(topology: HostTopology, tiers: tuple[tuple[int, int], ...]) -> int:
    """All tiers up to the slowest one that holds a node with CPUs; all of them when none does."""
    top = 0
    for position, (_, mask) in enumerate(tiers):
        if mask & topology.with_cpus:
            top = position + 1
    return nodemask.of(nid for _, mask in tiers[: top or len(tiers)] for nid in nodemask.nodes(mask))
