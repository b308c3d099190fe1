"""The files of /proc that show what memory there is and who has it, and a node's own counters.

Models /proc/iomem and the segments of /proc/kcore (fs/proc/kcore.c: every range of System RAM that is online),
/proc/meminfo, /proc/zoneinfo, nodeN/vmstat, cgroup.procs, and of a process `status` (Vm lines and
Mems_allowed_list), `numa_maps` and `cgroup`, all of Linux 6.1, cut to what is modelled. Physical addresses are
frame numbers times the page size. Left out: kcore's contents, notes and vmemmap segments.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from privmem.nodeagent.host.node_counts import node_page_state
from privmem.nodeagent.host.swap_area import swap_entries
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SHIFT

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel
    from privmem.nodeagent.host.process import Process

#: `OOM_SCORE_ADJ_MAX`; the smallest is as far below zero.
_ADJ_MAX = 1000


def add_files(kernel: Kernel) -> None:
    """Enter them into the kernel's files."""
    own = ProcFiles(kernel)
    add = kernel.sysfs.add
    add("/proc/iomem", own.iomem)
    add("/proc/kcore", own.kcore)
    add("/proc/meminfo", own.meminfo)
    add("/proc/zoneinfo", own.zoneinfo)
    add(r"/sys/devices/system/node/node(\d+)/vmstat", own.node_vmstat)
    add(r"/sys/fs/cgroup/(?:(\w+)/)?cgroup\.procs", own.members, own.attach)
    add(r"/proc/(\d+)/(status|numa_maps|cgroup)", own.of_process)
    add(r"/proc/(\d+)/oom_score_adj", own.oom_score_adj, own.set_oom_score_adj)


class ProcFiles:
    """Readers give text or a negative errno."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    # -- memory

    def ranges(self, online_only: bool) -> Iterator[tuple[int, int, int]]:
        """(node, first frame, frames) of each range that was added, in the order of addresses."""
        memory = self.kernel.memory
        for nid in sorted(memory.nodes, key=lambda n: memory.nodes[n].start_pfn):
            for part in sorted(self.kernel.hotplug.ranges[nid], key=lambda r: r.start):
                if part.online or not online_only:
                    yield nid, memory.nodes[nid].start_pfn + part.start, part.nr_pages

    def iomem(self) -> str:
        """Resources: added memory is there whether it is online or not; a driver's range bears its name."""
        claims = self.kernel.hotplug.claims
        lines = []
        for nid, first, nr_pages in self.ranges(online_only=False):
            owner = f" ({claims[nid].owner})" if nid in claims else ""
            lines.append(f"{_span(first, nr_pages)} : System RAM{owner}")
        return "\n".join(lines)

    def kcore(self) -> str:
        """The segments as `readelf -l` would list them, a line each."""
        return "\n".join(
            f"LOAD {first << PAGE_SHIFT:#x} {nr_pages << PAGE_SHIFT:#x}"
            for _, first, nr_pages in self.ranges(online_only=True)
        )

    def covered(self) -> int:
        """Nodes of which /proc/kcore shows memory."""
        return nodemask.of(nid for nid, _, _ in self.ranges(online_only=True))

    def meminfo(self) -> str:
        """Sums over all nodes: private memory counts as any."""
        nodes = nodemask.nodes(self.kernel.memory.topology.memory)
        rows = [self.kernel.meminfo(nid) for nid in nodes]
        names = list(rows[0]) if rows else []
        names = [name for name in names if name not in _OF_NODES_ONLY]
        lines = [f"{name}: {sum(row[name] for row in rows)} kB" for name in names]
        return "\n".join(lines)

    def zoneinfo(self) -> str:
        """Each node's zone: free pages, watermarks, and pages that the allocator manages."""
        memory = self.kernel.memory
        parts = []
        for nid in nodemask.nodes(memory.topology.memory):
            node, zone = memory.nodes[nid], memory.topology.node(nid).zone.capitalize()
            wmark = node.wmark
            rows = {
                "pages free": node.free_pages,
                "min": wmark.min_pages,
                "low": wmark.low_pages,
                "high": wmark.high_pages,
                "spanned": node.spec.span_pages,
                "managed": node.managed_pages,
            }
            text = "\n".join(f"  {name} {value}" for name, value in rows.items())
            parts.append(f"Node {nid}, zone {zone}\n{text}")
        return "\n".join(parts)

    def node_vmstat(self, text: str) -> str | int:
        """Pages of a node by state, and where its requests were served."""
        nid = int(text)
        memory = self.kernel.memory
        if nid not in memory.nodes or isinstance(self.kernel.sysfs.read(_NUMASTAT.format(nid)), int):
            return -errno.ENOENT
        served = str(self.kernel.sysfs.read(_NUMASTAT.format(nid)))
        lines = [f"{name} {count}" for name, count in node_page_state(memory, nid).items()]
        return "\n".join([*lines, served, f"nr_balloon_pages {memory.nodes[nid].balloon_pages}"])

    # -- processes

    def members(self, cgroup: str | None) -> str | int:
        """Pids of a cgroup, a line each."""
        if (cgroup or "") not in self.kernel.cgroups:
            return -errno.ENOENT
        return "\n".join(str(task.pid) for task in self.kernel.tasks_of(cgroup or ""))

    def attach(self, cgroup: str | None, text: str) -> int:
        """Move a process by its pid."""
        pid = int(text) if text.isascii() and text.isdecimal() else -1
        if (cgroup or "") not in self.kernel.cgroups:
            return -errno.ENOENT
        process = self.kernel.processes.get(pid)
        if process is None or process.exited:
            return -errno.EINVAL if pid < 0 else -errno.ESRCH
        return self.kernel.attach(process, cgroup or "")

    def of_process(self, pid: str, name: str) -> str | int:
        """A file of a living process; the others have none."""
        process = self.kernel.processes.get(int(pid))
        if process is None or process.exited:
            return -errno.ENOENT
        if name == "numa_maps":
            return process.numa_maps()
        if name == "cgroup":
            return f"0::/{process.cgroup}"
        return self._status(process)

    def oom_score_adj(self, pid: str) -> str | int:
        """Thousandths of the memory in question that the OOM killer adds to a process's points."""
        process = self.kernel.processes.get(int(pid))
        return -errno.ENOENT if process is None or process.exited else str(process.task.oom_score_adj)

    def set_oom_score_adj(self, pid: str, text: str) -> int:
        """`oom_score_adj_write`, by somebody who may lower it as well."""
        process = self.kernel.processes.get(int(pid))
        if process is None or process.exited:
            return -errno.ENOENT
        number = text.removeprefix("-")
        if not number.isascii() or not number.isdecimal() or int(number) > _ADJ_MAX:
            return -errno.EINVAL
        process.task.oom_score_adj = int(text)
        return 0

    def _status(self, process: Process) -> str:
        mm, memory = process.task.mm, self.kernel.memory
        kilobytes = 1 << (PAGE_SHIFT - 10)
        locked = sum(vma.nr_pages for vma in mm.vmas if vma.locked)
        swapped = sum(len(swap_entries(memory.page_table.pte[v.slot : v.slot + v.nr_pages])) for v in mm.vmas)
        rows = {
            "Pid": str(process.pid),
            "VmSize": f"{sum(vma.nr_pages for vma in mm.vmas) * kilobytes} kB",
            "VmLck": f"{locked * kilobytes} kB",
            "VmRSS": f"{process.resident_pages() * kilobytes} kB",
            "VmSwap": f"{swapped * kilobytes} kB",
            "Mems_allowed_list": nodemask.format_list(process.task.mems_allowed),
        }
        return "\n".join(f"{name}: {value}" for name, value in rows.items())


#: Lines of a node's meminfo that /proc/meminfo has not, at least not by this name.
_OF_NODES_ONLY = ("MemUsed", "FilePages")
_NUMASTAT = "/sys/devices/system/node/node{}/numastat"


def _span(first: int, nr_pages: int) -> str:
    return f"{first << PAGE_SHIFT:08x}-{((first + nr_pages) << PAGE_SHIFT) - 1:08x}"
