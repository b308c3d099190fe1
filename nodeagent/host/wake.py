"""Who may reclaim a node, and waking its kswapd: beside reclaim.py, which needs the faults that need this."""

from __future__ import annotations

from privmem.nodeagent.host.memory import Memory, Node
from privmem.scheduler.isolation import Service


def may_reclaim(memory: Memory, node: Node) -> bool:
    """Whether generic reclaim works on the node: always on a public one, on a private one when it opted in."""
    return memory.resolver.allows(Service.RECLAIM, node.nid)


def wake_kswapd(memory: Memory, node: Node) -> None:
    """`wakeup_kswapd`; a private node without RECLAIM has none."""
    if may_reclaim(memory, node) and not node.kswapd_awake and node.managed_pages:
        node.kswapd_awake = True
        memory.vmstat.add("kswapd_wake")
