"""The files through which a kernel is looked at and set: /sys, /proc, the cgroup tree.

Models the node, memory tier, NUMA, vmstat, cpuset and hugetlb files of Linux 6.1, the node state files of the
private-node series (which exist under which design is the design's answer), and its `compact` and pool files.
Text is as the kernel prints it, cut to what is modelled. Reading what does not exist gives -ENOENT, as does
writing; a file that cannot be written gives -EACCES.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from privmem.nodeagent.host import hugetlb
from privmem.nodeagent.host.memory import NUMASTAT
from privmem.scheduler import nodemask
from privmem.scheduler.abi import MAX_NUMNODES, PAGE_SHIFT

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

_NODES = "/sys/devices/system/node/"
_TIERS = "/sys/devices/virtual/memory_tiering/"

Reader = Callable[..., "str | int"]
Writer = Callable[..., int]


class Files:
    """All files of one kernel. `read` gives text or a negative errno, `write` 0 or a negative errno."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._table: list[tuple[re.Pattern[str], Reader, Writer | None]] = []
        for pattern, reader, writer in (
            (_NODES + r"(\w+)", self._state, None),
            (_NODES + r"node(\d+)/meminfo", self._meminfo, None),
            (_NODES + r"node(\d+)/numastat", self._numastat, None),
            (_NODES + r"node(\d+)/distance", self._distance, None),
            (_NODES + r"node(\d+)/cpulist", self._cpulist, None),
            (_TIERS + r"memory_tier(\d+)/nodelist", self._tier, None),
            ("/sys/kernel/mm/numa/demotion_enabled", self._demotion, self._set_demotion),
            ("/proc/sys/vm/drop_caches", self._nothing, self._drop_caches),
            ("/proc/vmstat", self._vmstat, None),
            ("/proc/sys/kernel/numa_balancing", self._numa_balancing, self._set_numa_balancing),
            (r"/sys/fs/cgroup/(?:(\w+)/)?cpuset\.mems", self._mems, self._set_mems),
            (r"/sys/fs/cgroup/(?:(\w+)/)?cpuset\.mems\.effective", self._effective, None),
            (r"/sys/fs/cgroup/(\w+)/cpuset\.memory_migrate", self._migrate, self._set_migrate),
            ("/sys/kernel/debug/lru_gen", self._lru_gen, None),
            ("/sys/kernel/debug/node/mem_features", self._mem_features, None),
        ):
            self.add(pattern, reader, writer)

    def add(self, pattern: str, reader: Reader, writer: Writer | None = None) -> None:
        """A file, or a family of them: the groups of the pattern go to reader and writer."""
        self._table.append((re.compile(pattern), reader, writer))

    def read(self, path: str) -> str | int:
        """The text of a file without the last line's end, or a negative errno."""
        for pattern, reader, _ in self._table:
            match = pattern.fullmatch(path)
            if match:
                return reader(*match.groups())
        return -errno.ENOENT

    def write(self, path: str, text: str) -> int:
        """Write a file."""
        for pattern, reader, writer in self._table:
            match = pattern.fullmatch(path)
            if match:
                if writer is None:
                    found = reader(*match.groups())
                    return found if isinstance(found, int) else -errno.EACCES
                return writer(*match.groups(), text.strip())
        return -errno.ENOENT

    # -- nodes

    def _state(self, name: str) -> str | int:
        states = self.kernel.node_states()
        return _list(states[name]) if name in states else -errno.ENOENT

    def _nid(self, text: str) -> int:
        """The node of a nodeN directory, which exists for nodes that are online or claimed."""
        nid = int(text)
        kernel = self.kernel
        if nid not in kernel.memory.nodes:
            return -errno.ENOENT
        there = nodemask.has(kernel.node_states()["online"], nid) or nid in kernel.hotplug.claims
        return nid if there else -errno.ENOENT

    def _meminfo(self, text: str) -> str | int:
        nid = self._nid(text)
        if nid < 0:
            return nid
        numbers = self.kernel.meminfo(nid)
        lines = [f"Node {nid} {name}: {value} kB" for name, value in numbers.items()]
        pool = hugetlb.pool_of(self.kernel.memory)
        counts = pool.nr.get(nid, 0), len(pool.free.get(nid, ())), pool.surplus.get(nid, 0)
        for name, count in zip(("Total", "Free", "Surp"), counts, strict=True):
            lines.append(f"Node {nid} HugePages_{name}: {count}")
        return "\n".join(lines)

    def _numastat(self, text: str) -> str | int:
        nid = self._nid(text)
        if nid < 0:
            return nid
        row = self.kernel.memory.numastat[nid].tolist()
        return "\n".join(f"{name} {value}" for name, value in zip(NUMASTAT, row, strict=True))

    def _distance(self, text: str) -> str | int:
        nid = self._nid(text)
        topology = self.kernel.memory.topology
        return nid if nid < 0 else " ".join(str(topology.distance(nid, other)) for other in topology.nids)

    def _cpulist(self, text: str) -> str | int:
        nid = self._nid(text)
        return nid if nid < 0 else ",".join(str(c) for c in self.kernel.memory.topology.node(nid).cpus)

    def _tier(self, number: str) -> str | int:
        tiers = self.kernel.tiers()
        return _list(tiers[int(number)]) if int(number) in tiers else -errno.ENOENT

    # -- switches

    def _demotion(self) -> str:
        return "true" if self.kernel.memory.demotion_enabled else "false"

    def _set_demotion(self, text: str) -> int:
        values = {"1": True, "true": True, "0": False, "false": False}
        if text not in values:
            return -errno.EINVAL
        self.kernel.memory.demotion_enabled = values[text]
        self.kernel.memory.setup_tiers()
        return 0

    def _numa_balancing(self) -> str:
        return str(self.kernel.memory.numa_balancing.mode)

    def _set_numa_balancing(self, text: str) -> int:
        if text not in ("0", "1", "2"):
            return -errno.EINVAL
        self.kernel.set_numa_balancing(int(text))
        return 0

    def _nothing(self) -> str:
        return ""

    def _drop_caches(self, text: str) -> int:
        if text not in ("1", "2", "3", "4"):
            return -errno.EINVAL
        if int(text) & 1:
            self.kernel.drop_caches()
        return 0

    def _vmstat(self) -> str:
        return "\n".join(f"{name} {value}" for name, value in self.kernel.memory.vmstat.count.items())

    def _lru_gen(self) -> str:
        """Every node with memory has a line in each memcg's part."""
        return "\n".join(f" node {nid:5d}" for nid in nodemask.nodes(self.kernel.memory.topology.memory))

    def _mem_features(self) -> str | int:
        """The mask of each node, in the versions of the series that have the file."""
        if self.kernel.design.label not in ("caps-c", "F0", "F1"):
            return -errno.ENOENT
        nodes = self.kernel.memory.topology.nodes
        return "\n".join(f"{node.nid} {int(node.features):#x}" for node in nodes if node.span_pages)

    # -- cgroups

    def _mems(self, name: str | None) -> str | int:
        group = self.kernel.cgroups.get(name or "")
        return -errno.ENOENT if group is None else _list(group.cpuset.requested)

    def _effective(self, name: str | None) -> str | int:
        group = self.kernel.cgroups.get(name or "")
        return -errno.ENOENT if group is None else _list(group.cpuset.effective)

    def _set_mems(self, name: str | None, text: str) -> int:
        if not name or name not in self.kernel.cgroups:
            return -errno.ENOENT if name else -errno.EACCES
        try:
            nodes = nodemask.parse(text)
        except ValueError:
            return -errno.EINVAL
        return self.kernel.write_mems(name, nodemask.nodes(nodes & ((1 << MAX_NUMNODES) - 1)))

    def _migrate(self, name: str) -> str | int:
        """A file of cgroup v1: whether pages move along with the mems."""
        group = self.kernel.cgroups.get(name)
        there = group is not None and self.kernel.cgroup_tree.legacy
        return str(int(group.memory_migrate)) if group is not None and there else -errno.ENOENT

    def _set_migrate(self, name: str, text: str) -> int:
        group = self.kernel.cgroups.get(name)
        if group is None or not self.kernel.cgroup_tree.legacy:
            return -errno.ENOENT
        if text not in ("0", "1"):
            return -errno.EINVAL
        group.memory_migrate = text == "1"
        return 0


def _list(mask: int) -> str:
    """A node list as the kernel prints it: nothing for the empty one."""
    return nodemask.format_list(mask) if mask else ""


def kilobytes(pages: int) -> int:
    """As /proc and /sys show memory."""
    return pages << (PAGE_SHIFT - 10)
