"""A process of an emulated Linux: system calls as Python methods that raise OSError with the kernel's errno.

Addresses and lengths are in bytes, as in the real calls; nodes are iterables of node ids. A fault that the
kernel answers with a signal raises `Signalled`. Each method names the man page that it follows; what the
kernel does is in the modules that it calls (syscalls, numa_syscalls, filemap, ...).
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from privmem.nodeagent.host import hugetlb_map, madvise, numa_syscalls, pins, policy_calls, syscalls, thp
from privmem.nodeagent.host.fault import FAULT_SIGBUS
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.pagecache import MemObject
from privmem.nodeagent.host.refusals import move_refusal, policy_refusal
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

MADV_MERGEABLE = 12

#: Where the kernel puts mappings that name no address.
_MMAP_BASE = 0x7000_0000_0000


class Signalled(Exception):
    """The kernel sent the process a signal: SIGSEGV, SIGBUS, or SIGKILL of the OOM killer."""

    def __init__(self, number: int, why: str) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"{self.signal.name}: {why}")


class Process:
    """One process with one thread. Made by `Kernel.spawn` and `fork`."""

    def __init__(self, kernel: Kernel, task: Task, cgroup: str) -> None:
        self.kernel = kernel
        self.task = task
        self.cgroup = cgroup
        #: Ended, by itself or by a signal; and whether the OOM killer did it.
        self.exited = False
        self.killed = False
        #: Faults that it took, without and with reading a page from somewhere, since `mark_faults`.
        self.soft_faults = 0
        self.hard_faults = 0

    @property
    def pid(self) -> int:
        return self.task.pid

    # -- address space

    def mmap(
        self, length: int, shared: bool = False, file: MemObject | None = None, offset: int = 0, addr: int = 0
    ) -> int:
        """mmap(2): anonymous memory, or a file from `offset` on; private unless `shared`. Returns the address;
        `addr` is taken as it is (MAP_FIXED), 0 lets the kernel choose.
        """
        start = _page_of(addr) if addr else self.free_address(_pages_in(length))
        nr = _pages_in(length)
        memory, task = self.kernel.memory, self.task
        if file is not None:
            index = _page_of(offset)
            self._check(syscalls.mmap_object(memory, task, start, nr, file, private=not shared, index=index))
        elif shared:
            self._check(syscalls.mmap_shared(memory, task, start, nr))
        else:
            self._check(syscalls.mmap_anon(memory, task, start, nr))
        return start << PAGE_SHIFT

    def munmap(self, addr: int, length: int) -> None:
        """munmap(2)."""
        self._check(syscalls.munmap(self.kernel.memory, self.task, _page_of(addr), _pages_in(length)))

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """madvise(2)."""
        start, nr_pages = _page_of(addr), _pages_in(length)
        if advice == MADV_MERGEABLE:
            self.kernel.mergeable.append((self.task.mm.mm_id, start, start + nr_pages))
        else:
            self._check(madvise.madvise(self.kernel.memory, self.task, start, nr_pages, advice))

    def mmap_hugetlb(self, length: int, shared: bool = False, noreserve: bool = False, addr: int = 0) -> int:
        """mmap(2) with MAP_ANONYMOUS | MAP_HUGETLB, of 2 MiB pages of the pool. Returns the address."""
        nr = -(-_pages_in(length) // HPAGE_PAGES) * HPAGE_PAGES
        start = _page_of(addr) if addr else self.free_address(nr + HPAGE_PAGES - 1)
        if addr and start % HPAGE_PAGES:
            raise OSError(errno.EINVAL, f"0x{addr:x} is not on a border of huge pages")
        start = -(-start // HPAGE_PAGES) * HPAGE_PAGES
        memory, task = self.kernel.memory, self.task
        self._check(hugetlb_map.mmap_hugetlb(memory, task, start, nr, not shared, noreserve))
        return start << PAGE_SHIFT

    def pin(self, addr: int, length: int, write: bool = True, longterm: bool = True) -> int:
        """`pin_user_pages` by a device on behalf of the process (io_uring, RDMA): how many pages are pinned."""
        call = pins.pin_user_pages
        pages = _page_of(addr), _pages_in(length)
        return self._check(call(self.kernel.memory, self.task, *pages, write, longterm))

    def unpin(self, addr: int | None = None, length: int = 0) -> int:
        """Undo pins of these pages, or all of the process: how many."""
        start = None if addr is None else _page_of(addr)
        return pins.unpin_user_pages(self.kernel.memory, self.task, start, _pages_in(length))

    def anon_huge_pages(self) -> int:
        """`AnonHugePages` of smaps_rollup, in base pages."""
        return thp.anon_huge_pages(self.kernel.memory, self.task)

    def fork(self) -> Process:
        """fork(2): the child."""
        return self.kernel.forked(self)

    def exit(self) -> None:
        """exit(2): all mappings go."""
        self.die()

    def die(self) -> None:
        """The end of the process, whoever wants it."""
        if not self.exited:
            self.exited = True
            syscalls.exit_task(self.kernel.memory, self.task)

    # -- access

    def touch(self, addr: int, length: int, write: bool = True) -> None:
        """Access each page of a range in order. Raises Signalled where a page cannot be had; the OOM killer may
        end this process or another one first.
        """
        memory = self.kernel.memory
        while True:
            self._alive()
            count = memory.vmstat.count
            faults, hard = count["pgfault"], count["pgmajfault"]
            error = syscalls.touch(memory, self.task, _page_of(addr), _pages_in(length), write)
            hard = count["pgmajfault"] - hard
            self.hard_faults += hard
            self.soft_faults += count["pgfault"] - faults - hard
            if not error:
                return
            if error == FAULT_SIGBUS:
                raise Signalled(signal.SIGBUS, f"no page behind some address of 0x{addr:x}+{length}")
            if error != -errno.ENOMEM:
                raise Signalled(signal.SIGSEGV, f"no right to some address of 0x{addr:x}+{length}")
            victim = self.kernel.out_of_memory(self)
            if victim is None or victim is self:
                self.killed = True
                self.die()
                raise Signalled(signal.SIGKILL, "the OOM killer chose this process")

    # -- NUMA

    def set_mempolicy(self, mode: int, nodes: Iterable[int] = ()) -> None:
        """set_mempolicy(2); `mode` with its flags."""
        mask = nodemask.of(nodes)
        error = numa_syscalls.set_mempolicy(self.task, mode, mask)
        self._check(error, lambda: policy_refusal(self.task, mode, mask))

    def mbind(self, addr: int, length: int, mode: int, nodes: Iterable[int] = (), flags: int = 0) -> None:
        """mbind(2)."""
        start, nr = _page_of(addr), _pages_in(length)
        memory = self.kernel.memory
        mask = nodemask.of(nodes)
        error = numa_syscalls.mbind(memory, self.task, start, nr, mode, mask, flags)
        self._check(error, lambda: policy_refusal(self.task, mode, mask), (start, nr))

    def set_mempolicy_home_node(self, addr: int, length: int, node: int, flags: int = 0) -> None:
        """set_mempolicy_home_node(2)."""
        start, nr = _page_of(addr), _pages_in(length)
        call = policy_calls.set_mempolicy_home_node
        self._check(call(self.kernel.memory, self.task, start, nr, node, flags))

    def get_mempolicy(self, addr: int | None = None, flags: int = 0) -> tuple[int, set[int]]:
        """get_mempolicy(2): (mode or node, nodes)."""
        vpn = None if addr is None else _page_of(addr)
        error, word, nodes = numa_syscalls.get_mempolicy(self.kernel.memory, self.task, vpn, flags)
        self._check(error)
        return word, set(nodemask.nodes(nodes))

    def move_pages(
        self, addrs: Sequence[int], nodes: Sequence[int] | None = None, flags: int = 2
    ) -> list[int]:
        """move_pages(2) of the process itself: status of each page; without nodes, where each page is."""
        vpns = [_page_of(a) for a in addrs]
        if nodes is None:
            return numa_syscalls.query_pages(self.kernel.memory, self.task, vpns)
        error, status = numa_syscalls.move_pages(self.kernel.memory, self.task, vpns, list(nodes), flags)
        self._check(min(error, 0), lambda: move_refusal(self.task, nodes))
        return status

    def migrate_pages(self, old: Iterable[int], new: Iterable[int]) -> int:
        """migrate_pages(2) of the process itself: how many pages could not move."""
        memory = self.kernel.memory
        call = numa_syscalls.migrate_pages
        return self._check(call(memory, self.task, nodemask.of(old), nodemask.of(new)))

    def sched_setaffinity(self, cpu: int) -> None:
        """sched_setaffinity(2) to one CPU."""
        if cpu not in self.kernel.memory.topology.cpus:
            raise OSError(errno.EINVAL, "EINVAL")
        self.task.cpu = cpu

    # -- looking

    def mark_faults(self) -> None:
        """Faults count from here on."""
        self.soft_faults = self.hard_faults = 0

    def faults_since_mark(self) -> tuple[int, int]:
        """(soft, hard)."""
        return self.soft_faults, self.hard_faults

    def where(self, addr: int, length: int) -> list[int | None]:
        """The node of each page as the hardware would see it, whoever may ask: None for one that is not mapped
        (`/proc/<pid>/pagemap` and the page's frame).
        """
        memory = self.kernel.memory
        found: list[int | None] = []
        start = _page_of(addr)
        for vpn in range(start, start + _pages_in(length)):
            vma = self.task.mm.find(vpn)
            entry = int(memory.page_table.pte[vma.slot_of(vpn)]) if vma else 0
            found.append(memory.frames.nid_of(entry >> PTE_PFN_SHIFT) if entry & PTE_PRESENT else None)
        return found

    def resident_pages(self) -> int:
        """VmRSS in pages."""
        pte = self.kernel.memory.page_table.pte
        return sum(
            int(np.count_nonzero(pte[v.slot : v.slot + v.nr_pages] & np.uint32(PTE_PRESENT)))
            for v in self.task.mm.vmas
        )

    # -- inside

    def free_address(self, nr_pages: int) -> int:
        """First virtual page of the lowest gap above the base that is wide enough."""
        vpn = _MMAP_BASE >> PAGE_SHIFT
        for vma in self.task.mm.vmas:
            if vma.start < vpn + nr_pages and vma.end > vpn:
                vpn = vma.end
        return vpn

    def _alive(self) -> None:
        if self.exited:
            raise OSError(errno.ESRCH, "the process has ended")

    def _check(
        self, result: int, why: Callable[[], str] | None = None, pages: tuple[int, int] | None = None
    ) -> int:
        """The result of a call, or OSError; `why` tells the story of the pages (start, number), or of all."""
        self._alive()
        if result < 0:
            name = errno.errorcode.get(-result, "")
            story = self.kernel.memory.story
            if story is not None and why is not None:
                start, nr_pages = pages or (0, 1 << 52)
                story.failed(
                    (self.task.mm.mm_id, start, start + nr_pages), f"{name}: {why()}".removesuffix(": ")
                )
            raise OSError(-result, name)
        return result


def _page_of(addr: int) -> int:
    if addr % PAGE_SIZE:
        raise OSError(errno.EINVAL, f"0x{addr:x} is not on a page border")
    return addr >> PAGE_SHIFT


def _pages_in(length: int) -> int:
    return -(-length // PAGE_SIZE)
