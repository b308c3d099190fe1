"""The contiguous-memory control of the test provider: its driver asks for a range of its own node.

Models the `contig` file of the series' `dax_test` driver (F1), which tests `alloc_contig_range` and
`alloc_contig_pages` from inside the kernel. The text of the requests is ours: `range START NR` (pages of the
device), `search NR` (the private search), `plain NR` (an ordinary search that names the node), `free`. One range
can be outstanding.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from privmem.nodeagent.host import contig, hotplug

if TYPE_CHECKING:
    from privmem.nodeagent.host.drivers.dax_test import DaxTest


class ContigControl:
    """The file of one test device."""

    def __init__(self, device: DaxTest) -> None:
        self.device = device
        #: First frame of the range that is held; -1 for none.
        self.first = -1

    @property
    def nid(self) -> int:
        """Node of the range that is held; -1 for none."""
        return self.device.kernel.memory.frames.nid_of(self.first) if self.first >= 0 else -1

    def write(self, text: str) -> int:
        """0, or -EBUSY while a range is outstanding, -EINVAL for a text that is not understood, -ERANGE outside of
        the device, -ENXIO while its node is not online, -ENOMEM where nothing was found; a range also gives
        -EPERM for residents that may not be displaced and -EBUSY for those that cannot.
        """
        words = text.split()
        if words == ["free"]:
            return self._free()
        numbers = {"range": 2, "search": 1, "plain": 1}
        verb, arguments = words[0] if words else "", words[1:]
        if len(arguments) != numbers.get(verb, -1) or not all(
            a.isascii() and a.isdecimal() for a in arguments
        ):
            return -errno.EINVAL
        if self.first >= 0:
            return -errno.EBUSY
        values = [int(a) for a in arguments]
        if values[-1] == 0:
            return -errno.EINVAL
        if values[-1] > self.device.nr_pages or sum(values) > self.device.nr_pages:
            return -errno.ERANGE
        if self.device.bound < 0 or self.device.read("state") != hotplug.ONLINE:
            return -errno.ENXIO
        if verb == "range":
            return self._range(*values)
        return self._search(values[0], private=verb == "search")

    def _range(self, start: int, nr_pages: int) -> int:
        device = self.device
        memory = device.kernel.memory
        first = memory.nodes[device.nid].start_pfn + device.start + start
        error = contig.alloc_contig_range(memory, first, nr_pages, device.owner, private=True)
        if not error:
            self.first = first
        return error

    def _search(self, nr_pages: int, private: bool) -> int:
        device = self.device
        memory = device.kernel.memory
        first = contig.alloc_contig_pages(
            memory, nr_pages, device.nid, 1 << device.nid, device.owner, private=private
        )
        if first < 0:
            return first
        self.first = first
        return 0

    def _free(self) -> int:
        if self.first < 0:
            return -errno.EINVAL
        contig.free_contig_range(self.device.kernel.memory, self.first)
        self.first = -1
        return 0
