"""The gate: which words keep pages out of a compressed node, and the no-allocation mark of its zone that they
set.

F3's `cram_set_no_alloc` has one owner for each zone, and a second one is refused. A closed gate stops
placement; it never drives residents out, and never stops the balloon of its own owner.
"""

from __future__ import annotations

import errno

from privmem.nodeagent.host.cram.service import CramNode
from privmem.nodeagent.host.memory import Memory

#: Who marks the zone for the service's own words.
SERVICE = "cram"


def apply_gate(memory: Memory, cram: CramNode, owner: str = "") -> None:
    """Set or clear the zone's mark as the words say, unless it is somebody else's."""
    node = memory.nodes[cram.nid]
    if cram.gate.closed:
        node.no_alloc_owner = node.no_alloc_owner or owner or SERVICE
    elif node.no_alloc_owner in (SERVICE, cram.owner, owner):
        node.no_alloc_owner = ""


def set_no_alloc(memory: Memory, nid: int, withdrawn: bool, owner: str = "") -> int:
    """`cram_set_no_alloc`: 0, -ENODEV for a node that is not registered, -EBUSY when somebody else has the
    mark.
    """
    cram = memory.cram.nodes.get(nid)
    if cram is None:
        return -errno.ENODEV
    who = owner or cram.owner
    marked = memory.nodes[nid].no_alloc_owner
    if marked not in ("", who, SERVICE):
        return -errno.EBUSY
    cram.gate.alloc_allowed = not withdrawn
    if marked == SERVICE and withdrawn:
        memory.nodes[nid].no_alloc_owner = who
    apply_gate(memory, cram, who)
    return 0


def set_test_block(memory: Memory, nid: int, blocked: bool) -> int:
    """The debug verbs `block` and `unblock`."""
    cram = memory.cram.nodes.get(nid)
    if cram is None:
        return -errno.ENODEV
    cram.gate.test_block = blocked
    apply_gate(memory, cram)
    return 0
