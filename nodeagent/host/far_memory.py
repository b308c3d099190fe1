"""The owner of slow distributed memory: it finds by accessed bits which of its pages are hot, and brings them
home.

Nothing in core mm promotes from a private node (feature series from F1 on: NUMA balancing never touches it),
so the driver that owns the node does: every period it looks at the accessed bits of the node's pages; a page
accessed in two periods in a row moves to the nearest public node with room above its high watermark.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host import _lru_kernel as lru_kernel
from privmem.nodeagent.host.layout import NR_LRU_LISTS
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.migrate import migrate_isolated
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Reason

#: Time between two looks. A choice: ten per second follow a hot set that moves within seconds.
SAMPLE_PERIOD_NS = 100_000_000
#: Most pages brought home at one look.
PROMOTE_PAGES_MAX = 512


def sample(memory: Memory) -> None:
    """Look at every pooled private node whose period is over."""
    if memory.now_ns < memory.next_sample_ns:
        return
    memory.next_sample_ns = memory.now_ns + SAMPLE_PERIOD_NS
    for node in memory.nodes.values():
        if node.private and node.spec.pooled:
            _promote_hot(memory, node)


def _promote_hot(memory: Memory, node: Node) -> None:
    hot = np.empty(PROMOTE_PAGES_MAX, dtype=np.int32)
    found = lru_kernel.sample_referenced(
        node.nid * NR_LRU_LISTS,
        hot,
        memory.lru_head,
        memory.frames.next_,
        memory.frames.flags,
        *memory.rmap_arrays(),
    )
    left = hot[:found]
    topology = memory.topology
    public = [n for n in memory.nodes.values() if not n.private]
    home = min(
        nodemask.nodes(topology.with_cpus),
        key=lambda cpu_node: (topology.distance(cpu_node, node.nid), cpu_node),
    )
    for target in sorted(public, key=lambda n: (topology.distance(home, n.nid), n.nid)):
        room = max(0, target.free_pages - target.wmark.high_pages)
        here, left = left[:room], left[room:]
        if not len(here):
            continue
        for pfn in here.tolist():
            memory.lru_del(pfn)
        migrate_isolated(memory, here, node, target, Reason.OWNER, target.nid, home)
        memory.vmstat.add("pgpromote_owner", len(here))
