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

from privmem.nodeagent.host import (
    file_io,
    hugetlb_map,
    literal,
    madvise,
    migrate_calls,
    mlock,
    mmap,
    move_calls,
    numa_maps,
    numa_syscalls,
    pins,
    policy_calls,
    syscalls,
    thp,
)
from privmem.nodeagent.host.fault import FAULT_SIGBUS
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mprotect import PROT_READ, PROT_WRITE, mprotect
from privmem.nodeagent.host.mremap import MREMAP_MAYMOVE, mremap
from privmem.nodeagent.host.pagecache import FILE, MemObject, OpenFile
from privmem.nodeagent.host.refusals import move_refusal, policy_refusal
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

MADV_MERGEABLE = 12


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
        #: Faults (soft, hard) that it had taken at the last `mark_faults`.
        self._faults_before = (task.min_flt, task.maj_flt)

    @property
    def pid(self) -> int:
        return self.task.pid

    # -- address space

    def mmap(
        self,
        length: int,
        shared: bool = False,
        file: MemObject | OpenFile | None = None,
        offset: int = 0,
        addr: int = 0,
        prot: int = PROT_READ | PROT_WRITE,
        flags: int = 0,
        fixed: bool = True,
    ) -> int:
        """mmap(2): anonymous memory, or a file from `offset` on; private unless `shared`. Returns the
        address.

        `addr` is taken as it is (MAP_FIXED) unless `fixed` is False, which makes it a wish; 0 lets the kernel
        choose. `flags` are further ones: MAP_POPULATE, MAP_LOCKED, MAP_FIXED_NOREPLACE, ...
        """
        memory, task, nr = self.kernel.memory, self.task, _pages_in(length)
        index = _page_of(offset)
        start = _page_of(addr) if fixed else addr >> PAGE_SHIFT
        if isinstance(file, MemObject):
            if file.kind != FILE:
                start = start or self.free_address(nr)
                error = syscalls.mmap_object(memory, task, start, nr, file, private=not shared, index=index)
                return self._check(error or start) << PAGE_SHIFT
            file = memory.page_cache.opened(file)
        flags |= mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        if addr and fixed:
            flags |= mmap.MAP_FIXED
        return self._check(mmap.mmap(memory, task, start, nr, prot, flags, file, index)) << PAGE_SHIFT

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """mprotect(2)."""
        start, nr = _page_of(addr), _pages_in(length)
        self._check(mprotect(self.kernel.memory, self.task, start, nr, prot))

    def mremap(
        self, addr: int, length: int, new_length: int, flags: int = MREMAP_MAYMOVE, new_addr: int = 0
    ) -> int:
        """mremap(2): the new address."""
        start, old, new = _page_of(addr), _pages_in(length), _pages_in(new_length)
        to = _page_of(new_addr)
        return self._check(mremap(self.kernel.memory, self.task, start, old, new, flags, to)) << PAGE_SHIFT

    def mlock(self, addr: int, length: int, on_fault: bool = False) -> None:
        """mlock(2), mlock2(2)."""
        start, end = addr >> PAGE_SHIFT, _pages_in(addr + length)
        self._check(mlock.mlock(self.kernel.memory, self.task, start, end - start, int(on_fault)))

    def munlock(self, addr: int, length: int) -> None:
        """munlock(2)."""
        start, end = addr >> PAGE_SHIFT, _pages_in(addr + length)
        self._check(mlock.munlock(self.kernel.memory, self.task, start, end - start))

    def mlockall(self, flags: int) -> None:
        """mlockall(2)."""
        self._check(mlock.mlockall(self.kernel.memory, self.task, flags))

    def munlockall(self) -> None:
        """munlockall(2)."""
        self._check(mlock.munlockall(self.kernel.memory, self.task))

    def mincore(self, addr: int, length: int) -> list[bool]:
        """mincore(2)."""
        error, found = file_io.mincore(self.kernel.memory, self.task, _page_of(addr), _pages_in(length))
        self._check(error)
        return [bool(there) for there in found]

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

    # -- files

    def open(self, file: MemObject | str, mode: str = "r+", direct: bool = False) -> OpenFile:
        """open(2) of a file of the kernel: `r`, `w` (for writing only) or `r+`; O_DIRECT."""
        self._alive()
        holder = self.kernel.files.get(file) if isinstance(file, str) else file
        if holder is None:
            raise OSError(errno.ENOENT, f"there is no file {file}")
        if mode not in ("r", "w", "r+"):
            raise OSError(errno.EINVAL, f"mode {mode!r}; allowed: r, w, r+")
        return self.kernel.memory.page_cache.open(holder, mode != "w", mode != "r", direct)

    def close(self, file: OpenFile) -> None:
        """close(2); mappings of the file stay."""
        self.kernel.memory.page_cache.close(file)

    def read(self, file: OpenFile, length: int, offset: int | None = None, into: int | None = None) -> int:
        """read(2), or pread(2) with an offset: bytes read. `into`: the buffer, whose pages are written."""
        done = self._transfer(file_io.read, file, length, offset)
        if into is not None and done:
            self._use_buffer(into, done, True)
            if self.kernel.memory.literal.known:
                start = file.position - (done >> PAGE_SHIFT) if offset is None else _page_of(offset)
                self.poke(into, literal.read_file(self.kernel.memory, file.object_id, start, done))
        return done

    def write(self, file: OpenFile, length: int, offset: int | None = None, source: int | None = None) -> int:
        """write(2), or pwrite(2) with an offset: bytes written. `source`: the buffer, whose pages are read."""
        if source is not None and length:
            self._use_buffer(source, length, False)
        done = self._transfer(file_io.write, file, length, offset)
        if source is not None and self.kernel.memory.literal.known:
            start = file.position - (done >> PAGE_SHIFT) if offset is None else _page_of(offset)
            literal.write_file(self.kernel.memory, file.object_id, start, self.peek(source, done))
        return done

    def _transfer(
        self,
        call: Callable[[Memory, Task, OpenFile, int, int], int],
        file: OpenFile,
        length: int,
        offset: int | None,
    ) -> int:
        start = file.position if offset is None else _page_of(offset)
        done = self._check(call(self.kernel.memory, self.task, file, start, _pages_in(length)))
        if offset is None:
            file.position += done
        return done << PAGE_SHIFT

    def _use_buffer(self, addr: int, length: int, is_write: bool) -> None:
        start, end = addr >> PAGE_SHIFT, _pages_in(addr + length)
        error = syscalls.touch(self.kernel.memory, self.task, start, end - start, is_write)
        self._check(-errno.EFAULT if error == FAULT_SIGBUS else error)

    def fsync(self, file: OpenFile) -> None:
        """fsync(2)."""
        self._check(file_io.fsync(self.kernel.memory, file))

    def posix_fadvise(self, file: OpenFile, offset: int, length: int, advice: int) -> None:
        """posix_fadvise(2); a length of 0 means to the end."""
        start, nr = _page_of(offset), _pages_in(length)
        self._check(file_io.fadvise(self.kernel.memory, self.task, file, start, nr, advice))

    def ftruncate(self, file: OpenFile, length: int) -> None:
        """ftruncate(2), to whole pages."""
        tasks = [p.task for p in self.kernel.processes.values() if not p.exited]
        self._check(file_io.truncate(self.kernel.memory, tasks, file, _pages_in(length)))

    # -- access

    def touch(self, addr: int, length: int, write: bool = True) -> None:
        """Access each page of a range in order. Raises Signalled where a page cannot be had; the OOM killer
        may end this process or another one first. -EAGAIN for a store to a pinned page of compressed RAM.
        """
        memory = self.kernel.memory
        while True:
            self._alive()
            error = syscalls.touch(memory, self.task, _page_of(addr), _pages_in(length), write)
            if not error:
                return
            if error == FAULT_SIGBUS:
                raise Signalled(signal.SIGBUS, f"no page behind some address of 0x{addr:x}+{length}")
            if error == -errno.EAGAIN:
                raise OSError(
                    errno.EAGAIN, "a page of compressed RAM is pinned: the store faults until it is not"
                )
            if error != -errno.ENOMEM:
                raise Signalled(signal.SIGSEGV, f"no right to some address of 0x{addr:x}+{length}")
            victim = self.kernel.out_of_memory(self)
            if victim is None or victim is self:
                self.killed = True
                self.die()
                raise Signalled(signal.SIGKILL, "the OOM killer chose this process")

    def poke(self, addr: int, part: bytes) -> None:
        """Store bytes from an address on, page by page: what `touch` does, with data. Needs no border of pages."""
        memory, end, done = self.kernel.memory, addr + len(part), addr
        while done < end:
            nr = min(end, (done | PAGE_SIZE - 1) + 1) - done
            self.touch(done & -PAGE_SIZE, PAGE_SIZE, write=True)
            pfn = literal.frame_at(memory, self.task, done >> PAGE_SHIFT)
            literal.write(memory, pfn, done % PAGE_SIZE, part[done - addr : done - addr + nr])
            done += nr

    def peek(self, addr: int, length: int) -> bytes:
        """Load bytes from an address on."""
        memory, parts, done = self.kernel.memory, [], addr
        while done < addr + length:
            nr = min(addr + length, (done | PAGE_SIZE - 1) + 1) - done
            self.touch(done & -PAGE_SIZE, PAGE_SIZE, write=False)
            page = literal.read(memory, literal.frame_at(memory, self.task, done >> PAGE_SHIFT))
            parts.append(page[done % PAGE_SIZE :][:nr])
            done += nr
        return b"".join(parts)

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
        self, addrs: Sequence[int], nodes: Sequence[int] | None = None, flags: int = 2, pid: int = 0
    ) -> list[int]:
        """move_pages(2) of a process, or of itself: status of each page; without nodes, where each page is."""
        memory, task = self.kernel.memory, self._task_of(pid)
        vpns = [addr >> PAGE_SHIFT for addr in addrs]
        if nodes is None:
            if task is not self.task and not self.task.root:
                raise OSError(errno.EPERM, "EPERM")
            return move_calls.query_pages(memory, task, vpns)
        error, status = move_calls.move_pages(memory, self.task, vpns, list(nodes), flags, task)
        self._check(error, lambda: move_refusal(task, nodes))
        return status

    def migrate_pages(self, old: Iterable[int], new: Iterable[int], pid: int = 0) -> int:
        """migrate_pages(2) of a process, or of itself: how many pages could not move."""
        call, task = migrate_calls.migrate_pages, self._task_of(pid)
        return self._check(call(self.kernel.memory, self.task, nodemask.of(old), nodemask.of(new), task))

    def _task_of(self, pid: int) -> Task:
        found = self if pid in (0, self.pid) else self.kernel.processes.get(pid)
        if found is None or found.exited:
            raise OSError(errno.ESRCH, f"there is no process {pid}")
        return found.task

    def sched_setaffinity(self, cpus: int | Iterable[int]) -> None:
        """sched_setaffinity(2): to these CPUs, or to one. The process stays where it is, or goes to the
        first.
        """
        there = self.kernel.memory.topology.cpus
        wanted = [cpus] if isinstance(cpus, int) else cpus
        mask = nodemask.of(cpu for cpu in wanted if cpu in there)
        if not mask:
            raise OSError(errno.EINVAL, "EINVAL")
        self.task.cpus_allowed = mask
        if not nodemask.has(mask, self.task.cpu):
            self.task.cpu = nodemask.first(mask)

    def sched_getaffinity(self) -> set[int]:
        """sched_getaffinity(2)."""
        return {cpu for cpu in self.kernel.memory.topology.cpus if self.task.cpus_allowed >> cpu & 1}

    # -- looking

    def mark_faults(self) -> None:
        """Faults count from here on."""
        self._faults_before = (self.task.min_flt, self.task.maj_flt)

    def faults_since_mark(self) -> tuple[int, int]:
        """(soft, hard)."""
        soft, hard = self._faults_before
        return self.task.min_flt - soft, self.task.maj_flt - hard

    def where(self, addr: int, length: int) -> list[int | None]:
        """The node of each page as the hardware would see it, whoever may ask: None for one that is not
        mapped (`/proc/<pid>/pagemap` and the page's frame).
        """
        memory = self.kernel.memory
        found: list[int | None] = []
        start = _page_of(addr)
        for vpn in range(start, start + _pages_in(length)):
            vma = self.task.mm.find(vpn)
            entry = int(memory.page_table.pte[vma.slot_of(vpn)]) if vma else 0
            found.append(memory.frames.nid_of(entry >> PTE_PFN_SHIFT) if entry & PTE_PRESENT else None)
        return found

    def numa_maps(self) -> str:
        """/proc/<pid>/numa_maps."""
        return numa_maps.numa_maps(self.kernel.memory, self.task)

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
        return mmap.free_address(self.task.mm, nr_pages)

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
