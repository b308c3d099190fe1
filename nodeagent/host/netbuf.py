"""Message buffers of the network stack: near the device if its node has memory, else local; never another's.

The use case of the mailing list thread: the network stack checks whether the target device has a node with
memory, and prefers that node over local memory. The driver that claimed the node asks as its owner
(Reason.NETWORK); when the device's memory is used up, or the device has none, the buffer comes from the CPU's
node and its neighbours by the ordinary list, so that no device's memory is ever a fallback for another's.
"""

from __future__ import annotations

import errno

from privmem.nodeagent.host import kmem
from privmem.nodeagent.host.memory import Memory
from privmem.scheduler.abi import Reason
from privmem.scheduler.zonelist import AllocRequest


def alloc_buffer(memory: Memory, device_nid: int | None, cpu_nid: int, holder: str) -> int:
    """A page for a message to or from a device: its frame, or -ENOMEM. `device_nid` is None without a node."""
    pfn = -errno.ENOMEM
    if device_nid is not None and memory.nodes[device_nid].managed_pages:
        near = AllocRequest(device_nid, None, Reason.NETWORK, this_node=True, private=True)
        pfn = kmem.take_page(memory, near, holder, may_reclaim=False)  # there is something to fall back on
    if pfn >= 0:
        memory.vmstat.add("netbuf_device")
        return pfn
    pfn = kmem.take_page(memory, AllocRequest(cpu_nid, None, Reason.KERNEL, movable=False), holder)
    memory.vmstat.add("netbuf_fallback" if pfn >= 0 else "netbuf_fail")
    return pfn


def free_buffer(memory: Memory, pfn: int) -> None:
    """The message is gone."""
    kmem.give_back(memory, pfn)
