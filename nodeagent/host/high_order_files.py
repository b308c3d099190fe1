"""The files of huge pages, pools and compaction.

Models /sys/kernel/mm/transparent_hugepage, /sys/kernel/mm/hugepages, the hugepages folder and the `compact` file
of a node, /proc/sys/vm/{nr_hugepages,compact_memory}, /proc/buddyinfo, the fragmentation indices of debugfs, and
`hard_offline_page` of Linux 6.1. A node's hugepages folder exists where the design counts the node as memory.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from privmem.nodeagent.host import compaction, hugetlb, thp
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.memory import Node
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SHIFT, PAGEBLOCK_ORDER

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

_NODE = r"/sys/devices/system/node/node(\d+)/"
_THP = "/sys/kernel/mm/transparent_hugepage/"
_HUGE = r"hugepages/hugepages-(2048|1048576)kB/"
_ORDER = {"2048": PAGEBLOCK_ORDER, "1048576": hugetlb.GIGANTIC_ORDER}


def add_files(kernel: Kernel) -> None:
    """Enter them into the kernel's files."""
    own = HighOrderFiles(kernel)
    add = kernel.sysfs.add
    add(_NODE + "compact", own.unreadable, own.write_compact)
    add("/proc/sys/vm/compact_memory", own.unreadable, own.write_compact_memory)
    add(_NODE + _HUGE + "nr_hugepages", own.node_total, own.write_node)
    add(_NODE + _HUGE + "free_hugepages", own.node_free)
    add(_NODE + _HUGE + "surplus_hugepages", own.node_surplus)
    add("/sys/kernel/mm/" + _HUGE + "nr_hugepages", own.total, own.write_total)
    add("/sys/kernel/mm/" + _HUGE + "free_hugepages", own.free)
    add("/sys/kernel/mm/" + _HUGE + "resv_hugepages", own.reserved)
    add("/sys/kernel/mm/" + _HUGE + "surplus_hugepages", own.surplus)
    add(
        "/proc/sys/vm/nr_hugepages",
        lambda: own.total("2048"),
        lambda text: own.write_total("2048", text),
    )
    add(_THP + "enabled", lambda: own.choice("enabled", thp.ENABLED), own.write_enabled)
    add(_THP + "defrag", lambda: own.choice("defrag", thp.DEFRAG), own.write_defrag)
    add(_THP + r"khugepaged/(pages_to_scan|max_ptes_none|max_ptes_shared|defrag)", own.knob, own.write_knob)
    add("/proc/buddyinfo", own.buddyinfo)
    add("/sys/kernel/debug/extfrag/extfrag_index", lambda: own.indices(compaction.fragmentation_index))
    add("/sys/kernel/debug/extfrag/unusable_index", lambda: own.indices(compaction.unusable_index))
    add("/sys/devices/system/memory/hard_offline_page", own.unreadable, own.write_hard_offline)


def _count(text: str) -> int:
    """`kstrtoul`: a decimal number, or -EINVAL."""
    return int(text) if text.isascii() and text.isdecimal() else -errno.EINVAL


class HighOrderFiles:
    """Readers give text or a negative errno, writers 0 or a negative errno."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.memory = kernel.memory

    def unreadable(self, *_groups: str) -> int:
        """A file that can only be written."""
        return -errno.EIO

    # -- compaction

    def write_compact(self, nid: str, _text: str) -> int:
        """Whatever is written."""
        if int(nid) not in self.memory.nodes:
            return -errno.ENOENT
        return compaction.compact_node(self.memory, int(nid))

    def write_compact_memory(self, text: str) -> int:
        """Any number."""
        return min(_count(text), 0) or compaction.compact_memory(self.memory)

    def indices(self, index: Callable[[Node, int], int]) -> str:
        """A line a node, a column an order, in thousandths."""
        lines = []
        for nid, node in self.memory.nodes.items():
            if node.managed_pages:
                values = (index(node, order) for order in range(node.buddy.nr_orders))
                lines.append(f"Node {nid}: " + " ".join(_thousandths(value) for value in values))
        return "\n".join(lines)

    def buddyinfo(self) -> str:
        """Free blocks by order."""
        lines = []
        for nid, node in self.memory.nodes.items():
            if node.managed_pages:
                zone = self.memory.topology.node(nid).zone.capitalize()
                blocks = "".join(f"{n:6d} " for n in node.buddy.free_blocks_by_order())
                lines.append(f"Node {nid}, zone {zone:>8} {blocks}".rstrip())
        return "\n".join(lines)

    # -- pools

    def _pool_nid(self, text: str) -> int:
        nid = int(text)
        there = nodemask.has(hugetlb.memory_nodes(self.memory), nid)
        return nid if there else -errno.ENOENT

    def node_total(self, nid: str, size: str) -> str | int:
        """Pages of a size on a node."""
        at = self._pool_nid(nid)
        return at if at < 0 else str(hugetlb.nr_hugepages(self.memory, at, _ORDER[size]))

    def node_free(self, nid: str, size: str) -> str | int:
        """Those of them that are free."""
        at = self._pool_nid(nid)
        return at if at < 0 else str(hugetlb.free_hugepages(self.memory, at, _ORDER[size]))

    def node_surplus(self, nid: str, size: str) -> str | int:
        """Those of them that go when they are free."""
        at = self._pool_nid(nid)
        return at if at < 0 else str(hugetlb.pool_of(self.memory, _ORDER[size]).surplus.get(at, 0))

    def write_node(self, nid: str, size: str, text: str) -> int:
        """Grow or shrink a node's part of the pool."""
        at, count = self._pool_nid(nid), _count(text)
        if at < 0 or count < 0:
            return min(at, count)
        return hugetlb.write_nr_hugepages(self.memory, count, nid=at, order=_ORDER[size])

    def total(self, size: str) -> str:
        """What the administrator asked for and got."""
        return str(hugetlb.nr_hugepages(self.memory, order=_ORDER[size]))

    def free(self, size: str) -> str:
        """Free pages of the pool."""
        return str(hugetlb.free_hugepages(self.memory, order=_ORDER[size]))

    def reserved(self, size: str) -> str:
        """Free pages that are promised to mappings."""
        return str(hugetlb.pool_of(self.memory, _ORDER[size]).reserved)

    def surplus(self, size: str) -> str:
        """Pages beyond what the administrator wants."""
        return str(hugetlb.pool_of(self.memory, _ORDER[size]).total_surplus)

    def write_total(self, size: str, text: str) -> int:
        """Grow or shrink the pool, over all nodes in turn."""
        count = _count(text)
        return count if count < 0 else hugetlb.write_nr_hugepages(self.memory, count, order=_ORDER[size])

    # -- transparent huge pages

    def choice(self, name: str, values: tuple[str, ...]) -> str:
        """All values, the one in force in brackets."""
        now = getattr(self.memory.high_order.thp, name)
        return " ".join(f"[{value}]" if value == now else value for value in values)

    def write_enabled(self, text: str) -> int:
        """`enabled`."""
        return self._choose("enabled", thp.ENABLED, text)

    def write_defrag(self, text: str) -> int:
        """`defrag`."""
        return self._choose("defrag", thp.DEFRAG, text)

    def _choose(self, name: str, values: tuple[str, ...], text: str) -> int:
        if text not in values:
            return -errno.EINVAL
        setattr(self.memory.high_order.thp, name, text)
        return 0

    def knob(self, name: str) -> str:
        """A number of khugepaged."""
        return str(int(getattr(self.memory.high_order.thp, _FIELD.get(name, name))))

    def write_knob(self, name: str, text: str) -> int:
        """-EINVAL for what is no number, or too large a one."""
        count = _count(text)
        if not _LEAST.get(name, 0) <= count <= _MOST.get(name, count):
            return -errno.EINVAL
        setattr(
            self.memory.high_order.thp, _FIELD.get(name, name), bool(count) if name == "defrag" else count
        )
        return 0

    # -- errors

    def write_hard_offline(self, text: str) -> int:
        """A hardware error at a physical address, in hexadecimal or decimal."""
        hexadecimal = text.startswith("0x")
        digits = text[2:] if hexadecimal else text
        known = "0123456789abcdefABCDEF" if hexadecimal else "0123456789"
        if not digits or any(c not in known for c in digits):
            return -errno.EINVAL
        pfn = int(digits, 16 if hexadecimal else 10) >> PAGE_SHIFT
        return self.kernel.memory_failure(pfn).error


#: khugepaged's files that have another name inside, and the bounds of its numbers.
_FIELD = {"defrag": "khugepaged_defrag"}
_LEAST = {"pages_to_scan": 1}
_MOST = {
    "max_ptes_none": HPAGE_PAGES - 1,
    "max_ptes_shared": HPAGE_PAGES - 1,
    "defrag": 1,
}


def _thousandths(value: int) -> str:
    sign = "-" if value < 0 else ""
    return f"{sign}{abs(value) // 1000}.{abs(value) % 1000:03d}"
