"""`anondax` of the latest version (F3): a device file of shared anonymous memory on one private node.

Each open file has memory of its own, which all mappings of it share, also over fork. A fault takes a page with
the owner's call (one node, THISNODE): where that fails, or beyond the device's size, the toucher gets SIGBUS;
nobody is killed and nothing spills.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from privmem.nodeagent.host import syscalls
from privmem.nodeagent.host.pagecache import MemObject
from privmem.nodeagent.host.task import Task

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel


class AnonDax:
    """One device. Calls return 0 or more, or a negative errno."""

    def __init__(self, kernel: Kernel, nid: int) -> None:
        self.kernel = kernel
        self.nid = nid
        self.nr_pages = kernel.boot[nid].pages
        self.killed = False

    def open(self) -> MemObject | int:
        """A file with memory of its own; -ENXIO after the device was removed, or while its node is offline."""
        if self.killed or not self.kernel.memory.nodes[self.nid].managed_pages:
            return -errno.ENXIO
        cache = self.kernel.memory.page_cache
        return cache.create_device(f"anondax{self.nid}", self.nr_pages, self.nid)

    def mmap(self, task: Task, opened: MemObject, start: int, nr_pages: int, index: int, shared: bool) -> int:
        """-EINVAL for MAP_PRIVATE, and for what is not inside the device."""
        if not shared or index < 0 or nr_pages <= 0 or index + nr_pages > self.nr_pages:
            return -errno.EINVAL
        memory = self.kernel.memory
        return syscalls.mmap_object(memory, task, start, nr_pages, opened, private=False, index=index)

    def revive(self) -> int:
        """The driver is bound again: its node's memory comes back with the claim that the machine has for it."""
        error = self.kernel.plug(self.nid) if not self.kernel.hotplug.ranges[self.nid] else 0
        self.killed = self.killed and error < 0
        return error

    def kill(self) -> int:
        """The driver is unbound: no further open; its node's memory is removed if nothing is there."""
        self.killed = True
        error = self.kernel.hotplug.remove(self.nid)
        self.kernel.memory_changed()
        return error
