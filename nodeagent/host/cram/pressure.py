"""The first generation of the compressed RAM service (RFC v4): register, pressure, and what moves pages in.

Models `cram_register_private_node`, `cram_unregister_private_node`, `cram_set_pressure` and the service's
`migrate_to` of v4. A driver registers a node that is private already; the service sets the node's flags, and
kswapd works on it from then on. Pressure, 0 to 1000, raises the mark up to which kswapd frees pages of the node
(the boost of its first populated zone), and keeps pages out only at 1000. The node is terminal: what kswapd takes
from it goes to swap. Left out: that waking kswapd takes time.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from privmem.nodeagent.host.cram import placement
from privmem.nodeagent.host.cram.gate import apply_gate
from privmem.nodeagent.host.cram.registration import usual_features
from privmem.nodeagent.host.cram.service import PRESSURE_FULL, CramNode, Generation
from privmem.nodeagent.host.hotplug import Hotplug
from privmem.nodeagent.host.layout import PG_LRU
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.wake import wake_kswapd
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Feature
from privmem.scheduler.tiers import ADISTANCE_DAX


def register_private_node(plug: Hotplug, nid: int, owner: str) -> int:
    """0, also for the owner who has it already; -EINVAL for a node that is not private, or has no memory online;
    -EBUSY when somebody else has it.
    """
    memory = plug.memory
    node, claim = memory.nodes.get(nid), plug.claims.get(nid)
    if (
        node is None
        or not nodemask.has(memory.topology.private, nid)
        or claim is None
        or not node.managed_pages
    ):
        return -errno.EINVAL
    held = memory.cram.nodes.get(nid)
    if (held.owner if held else claim.owner) != owner:
        return -errno.EBUSY
    if held is None:
        features = usual_features(Generation.V4)
        ranges = [(part.start, part.nr_pages) for part in plug.ranges[nid]]
        memory.cram.nodes[nid] = CramNode(nid, owner, features, ranges)
        plug.adistance.setdefault(nid, ADISTANCE_DAX)
        plug.take_claim(nid, replace(claim, features=features))
        memory.setup_tiers()
    return 0


def unregister_private_node(plug: Hotplug, nid: int) -> int:
    """0; -EINVAL for a node that cannot be, -ENODEV for one that is not registered. Its memory stays, without the
    flags of the service, whose ops go (`node_private_clear_ops`): the node is in no tier any more.
    """
    memory = plug.memory
    if nid not in memory.nodes:
        return -errno.EINVAL
    if nid not in memory.cram.nodes:
        return -errno.ENODEV
    del memory.cram.nodes[nid]
    memory.nodes[nid].no_alloc_owner = ""
    if nid in plug.claims:
        plug.take_claim(nid, replace(plug.claims[nid], features=Feature.NONE))
    memory.setup_tiers()
    return 0


def set_pressure(memory: Memory, nid: int, pressure: int) -> int:
    """0, or -ENODEV. The node's kswapd is woken, if there is any pressure."""
    cram = memory.cram.nodes.get(nid)
    if cram is None:
        return -errno.ENODEV
    cram.pressure = min(max(pressure, 0), PRESSURE_FULL)
    cram.gate.full_pressure = cram.pressure == PRESSURE_FULL
    apply_gate(memory, cram)
    if cram.pressure:
        wake_kswapd(memory, memory.nodes[nid])
    return 0


def migrate_to(memory: Memory, nid: int, pfns: list[int]) -> int:
    """Somebody wants pages on the node: how many stayed where they were, -ENODEV for a node that is not
    registered or being taken down, -ENOSPC at full pressure. Stops where that begins.
    """
    cram = memory.cram.nodes.get(nid)
    if cram is None or cram.gate.migration_blocked:
        return -errno.ENODEV
    if cram.gate.full_pressure:
        return -errno.ENOSPC
    context = placement.entry_context(memory, nid)
    left = len(pfns)
    memory.lru_batches.drain_all()
    for pfn in pfns:
        if cram.gate.closed or context is None:
            break
        if not int(memory.frames.flags[pfn]) & PG_LRU or not placement.eligible(memory, pfn):
            continue
        memory.lru_del(pfn)
        if not placement.move_pages(memory, [pfn], memory.nodes[nid], context):
            memory.lru_add(pfn)
            continue
        memory.vmstat.add("demote_compressed")
        cram.placed_pages += 1
        left -= 1
        if cram.full_after_pages > 0:
            cram.full_after_pages -= 1
            if not cram.full_after_pages:
                set_pressure(memory, nid, PRESSURE_FULL)
    return left
