"""The activities of the audit: what kernels and users do every day, and who is invited to a private node by it.

Each activity runs the emulated kernel's own paths on a fresh machine whose private nodes hold 32 pages each of
their owners' applications. `invites` says on which private nodes its pages may land, or be worked on, in terms of
what the actor named and what the node's driver wished for; it never asks a design.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from privmem.cluster.audit.machine import RESIDENT_PAGES, Scene
from privmem.nodeagent.host import contig, damon, filemap, kmem, netbuf, swap
from privmem.nodeagent.host.process import Process, Signalled
from privmem.nodeagent.host.wake import wake_kswapd
from privmem.scheduler.abi import (
    MPOL_F_STATIC_NODES,
    MPOL_MF_MOVE,
    PAGE_SHIFT,
    PAGE_SIZE,
    Feature,
    Mpol,
)
from privmem.scheduler.topology import ZONE_NORMAL

#: Pages that a user maps to try a door.
TRIED_PAGES = 16
HUGE_PAGES = 512
#: Pages of the swap area of rows about reclaim, which could not take anonymous pages without one.
SWAP_PAGES = 4096


class NotRunnable(Exception):
    """The machine has not what the activity needs; says what."""


def nobody(_scene: Scene) -> set[int]:
    """No private node is invited."""
    return set()


def wished(*features: Feature) -> Callable[[Scene], set[int]]:
    """Nodes whose driver wished for one of these."""

    def invites(scene: Scene) -> set[int]:
        return {nid for nid, node in scene.private.items() if any(node.wish & f for f in features)}

    return invites


def first_private(scene: Scene) -> set[int]:
    """The one node whose owner acts."""
    return {min(scene.private)}


def no_frames(_scene: Scene) -> set[int]:
    """Nothing that landed is the audit's own doing."""
    return set()


@dataclass(frozen=True, slots=True)
class Activity:
    """One row of the matrix."""

    name: str
    #: What the mailing list thread claims of it, in a few words.
    claim: str
    run: Callable[[Scene, list[str]], None]
    invites: Callable[[Scene], set[int]] = nobody
    #: Zone that all private memory has for this row; empty: as the machine says.
    zone: str = ""
    demotion: bool = False
    balancing: int = 0
    #: Frames that the activity took as an owner on purpose.
    own: Callable[[Scene], set[int]] = no_frames
    #: On which private nodes pages may be worked on in place; None: where they may land.
    works: Callable[[Scene], set[int]] | None = None


# -- faults and bare allocations


def _fill_general(scene: Scene, notes: list[str], nr_pages: int | None = None) -> Process:
    """A process that faults in more memory than the general nodes have free, until it is stopped."""
    process = scene.user()
    total = sum(scene.kernel.memory.nodes[n.nid].free_pages for n in scene.machine.public)
    wanted = total + 64 if nr_pages is None else nr_pages
    addr = scene.area(process, wanted)
    try:
        process.touch(addr, wanted * PAGE_SIZE)
    except Signalled as end:
        notes.append(end.signal.name)
    return process


def _faults(scene: Scene, notes: list[str]) -> None:
    _fill_general(scene, notes)


def _alloc(this_node: bool) -> Callable[[Scene, list[str]], None]:
    def run(scene: Scene, notes: list[str]) -> None:
        got = [
            kmem.alloc_pages_node(scene.kernel.memory, nid, "audit", this_node=this_node, movable=movable)
            for nid in scene.private
            for movable in (False, True)
            for _ in range(4)
        ]
        notes.append(f"{sum(pfn >= 0 for pfn in got)} of {len(got)} served")

    return run


def _private_preferred(scene: Scene, notes: list[str]) -> None:
    """The owner of the first private node goes on after its node is full, with a node id but without THISNODE."""
    nid = min(scene.private)
    owners = scene.kernel.owners
    for _ in range(scene.private[nid].pages + TRIED_PAGES):
        if owners.alloc("owner", nid, this_node=False) < 0:
            notes.append("ENOMEM")
            return


def _kmalloc(scene: Scene, _notes: list[str]) -> None:
    for nid in scene.private:
        for _ in range(4):
            kmem.kmalloc_node(scene.kernel.memory, nid, "audit")


def _hotplug(scene: Scene, notes: list[str]) -> None:
    """Every private node is unplugged, empty, and plugged again: what is made for it, and where."""
    for process, _ in scene.residents.values():
        process.exit()
    scene.begin()
    for nid in scene.private:
        notes.append(f"unplug {scene.kernel.unplug(nid)} plug {scene.kernel.plug(nid, zone=ZONE_NORMAL)}")


def _walk_possible(scene: Scene, _notes: list[str]) -> None:
    kmem.walk_possible_nodes(scene.kernel.memory, "walker")
    kmem.walk_possible_nodes(scene.kernel.memory, "walker", this_node=True)


def _walk_online(scene: Scene, notes: list[str]) -> None:
    memory = scene.kernel.memory
    kmem.walk_online_nodes(memory, "walker")
    notes.append(f"{kmem.memtrace(memory, 16, 'memtrace')} ranges traced")


def _contig_by_address(scene: Scene, notes: list[str]) -> None:
    """Somebody who is not the owner asks for frames of each private node by their address."""
    memory = scene.kernel.memory
    for nid in scene.private:
        node = memory.nodes[nid]
        last = node.start_pfn + node.spec.span_pages - 64
        notes.append(_errno(contig.alloc_contig_range(memory, last, 32, "stranger")))


def _contig_search(scene: Scene, notes: list[str]) -> None:
    memory = scene.kernel.memory
    for nid in scene.private:
        first = contig.alloc_contig_pages(memory, 32, nid, None, "stranger")
        notes.append(f"node {memory.frames.nid_of(first)}" if first >= 0 else _errno(first))


# -- huge pages


def _need_huge(scene: Scene) -> None:
    if all(node.pages < 2 * HUGE_PAGES for node in scene.private.values()):
        raise NotRunnable("no private node has room for a huge page")


def _hugetlb_node(scene: Scene, notes: list[str]) -> None:
    _need_huge(scene)
    for nid in scene.private:
        path = f"/sys/devices/system/node/node{nid}/hugepages/hugepages-2048kB/nr_hugepages"
        notes.append(_errno(scene.kernel.sysfs.write(path, "1")))


def _hugetlb_global(scene: Scene, _notes: list[str]) -> None:
    _need_huge(scene)
    scene.kernel.sysfs.write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "64")


# -- policies


def _policy(mode: Mpol, with_home: bool) -> Callable[[Scene, list[str]], None]:
    def run(scene: Scene, notes: list[str]) -> None:
        for nid in scene.private:
            process = scene.user()
            addr = scene.area(process, TRIED_PAGES)
            nodes = [scene.home.nid, nid] if with_home else [nid]
            try:
                process.mbind(addr, TRIED_PAGES * PAGE_SIZE, mode, nodes)
            except OSError as failure:
                notes.append(_errno(-(failure.errno or 0)))
            process.touch(addr, TRIED_PAGES * PAGE_SIZE)

    return run


def _rebind(scene: Scene, notes: list[str]) -> None:
    """A task bound to the second general node; its cpuset swaps that node for each private one in turn."""
    for nid in scene.private:
        name = f"tenant{nid}"
        scene.kernel.create_cgroup(name)
        scene.kernel.write_mems(name, [scene.home.nid, scene.away.nid])
        process = scene.kernel.spawn(scene.home.cpus[0], name)
        process.set_mempolicy(Mpol.BIND, [scene.away.nid])
        notes.append(_errno(scene.kernel.write_mems(name, [scene.home.nid, nid])))
        addr = scene.area(process, TRIED_PAGES)
        process.touch(addr, TRIED_PAGES * PAGE_SIZE)


def _stale_bind(scene: Scene, notes: list[str]) -> None:
    """A static bind to each private node alone; its memory goes, and another device comes under the same id."""
    bound = []
    for nid in scene.private:
        process = scene.user()
        try:
            process.set_mempolicy(Mpol.BIND | MPOL_F_STATIC_NODES, [nid])
        except OSError as failure:
            notes.append(_errno(-(failure.errno or 0)))
            continue
        bound.append((process, nid))
    for process, _ in scene.residents.values():
        process.exit()
    scene.begin()
    for process, nid in bound:
        gone = scene.kernel.unplug(nid)
        notes.append(_errno(gone or scene.kernel.plug(nid, owner="another device")))
        if gone < 0:  # somebody's pages cannot leave: the bind is as good as ever
            continue
        addr = scene.area(process, TRIED_PAGES)
        process.touch(addr, TRIED_PAGES * PAGE_SIZE)


def _page_tables(scene: Scene, _notes: list[str]) -> None:
    """Page tables of tasks whose whole policy is a bind to each private node."""
    scene.kernel.memory.account_pagetables = True
    for nid in scene.private:
        process = scene.user()
        try:
            process.set_mempolicy(Mpol.BIND, [nid])
        except OSError:
            continue
        addr = scene.area(process, 1)
        process.mbind(
            addr, PAGE_SIZE, Mpol.BIND, [scene.home.nid]
        )  # the page elsewhere, its table by the task
        process.touch(addr, PAGE_SIZE)


# -- page cache


def _cache_under_task_policy(scene: Scene, notes: list[str]) -> None:
    """A reader whose whole policy is a bind to each private node, and read(2)."""
    for nid in scene.private:
        process = scene.user()
        try:
            process.set_mempolicy(Mpol.BIND, [nid])
        except OSError as failure:
            notes.append(_errno(-(failure.errno or 0)))
        file = scene.kernel.create_file(f"cold{nid}", TRIED_PAGES)
        filemap.read_pages(scene.kernel.memory, process.task, file, 0, TRIED_PAGES)


def _cache_left_behind(scene: Scene, notes: list[str]) -> None:
    """A file mapped under a bind to each private node, faulted in and unmapped: what stays is unmapped cache."""
    for nid in scene.private:
        process = scene.user()
        file = scene.kernel.create_file(f"mapped{nid}", TRIED_PAGES)
        addr = process.mmap(TRIED_PAGES * PAGE_SIZE, file=file)
        try:
            process.mbind(addr, TRIED_PAGES * PAGE_SIZE, Mpol.BIND, [nid])
        except OSError as failure:
            notes.append(_errno(-(failure.errno or 0)))
        process.touch(addr, TRIED_PAGES * PAGE_SIZE, write=False)
        process.munmap(addr, TRIED_PAGES * PAGE_SIZE)


# -- reclaim, tiers


def _reclaim(scene: Scene, _notes: list[str]) -> None:
    swap.swapon(scene.kernel.memory, SWAP_PAGES)
    for nid in scene.private:
        scene.moved_in(nid, RESIDENT_PAGES)
    scene.begin()
    for nid in scene.private:
        _press(scene, nid)


def _press(scene: Scene, nid: int) -> None:
    """The owner fills its node, and wakes kswapd as every allocation does: a node may have none."""
    memory = scene.kernel.memory
    memory.nodes[nid].kswapd_awake = False
    for _ in range(scene.private[nid].pages):
        if scene.kernel.owners.alloc("owner", nid) < 0:
            break
    wake_kswapd(memory, memory.nodes[nid])
    scene.kernel.kswapd(nid)


def _owners_frames(scene: Scene) -> set[int]:
    return set(scene.kernel.owners.held)


def _demotion(scene: Scene, notes: list[str]) -> None:
    _fill_general(scene, notes)
    scene.kernel.kswapd(wake=True)


def _hint_faults(scene: Scene, _notes: list[str]) -> None:
    """The applications on the private nodes run on another CPU, with hint faults switched on."""
    away = scene.away.cpus[0] if scene.away.cpus else scene.home.cpus[0]
    for process, addr in scene.residents.values():
        process.sched_setaffinity(away)
        for _ in range(3):
            scene.kernel.numa_scan(process)
            process.touch(addr, RESIDENT_PAGES * PAGE_SIZE, write=False)
        scene.kernel.numa_scan(process)  # and once more, to see whose access right it takes


def _compaction(scene: Scene, notes: list[str]) -> None:
    for nid in scene.private:
        notes.append(_errno(scene.kernel.sysfs.write(f"/sys/devices/system/node/node{nid}/compact", "1")))
        scene.kernel.kcompactd(nid, 9)
    scene.kernel.sysfs.write("/proc/sys/vm/compact_memory", "1")


def _ksm(scene: Scene, notes: list[str]) -> None:
    for process, addr in scene.residents.values():
        process.madvise(addr, RESIDENT_PAGES * PAGE_SIZE, 12)
    notes.append(f"{scene.kernel.merge_pages()} merged")


def _collapse(daemon: bool) -> Callable[[Scene, list[str]], None]:
    """A huge range of which some pages are on each private node, where a huge page is free."""

    def run(scene: Scene, notes: list[str]) -> None:
        _need_huge(scene)
        areas = [
            scene.moved_in(nid, HUGE_PAGES, aligned=True)
            for nid, node in scene.private.items()
            if node.pages >= 2 * HUGE_PAGES
        ]
        scene.begin()
        if daemon:
            scene.kernel.sysfs.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
            notes.append(f"{scene.kernel.khugepaged(1 << 20)} collapsed")
            return
        for process, addr in areas:
            try:
                process.madvise(addr, HUGE_PAGES * PAGE_SIZE, 25)
                notes.append("ok")
            except OSError as failure:
                notes.append(_errno(-(failure.errno or 0)))

    return run


def _damon(scene: Scene, notes: list[str]) -> None:
    for process, addr in scene.residents.values():
        done = damon.migrate_region(
            scene.kernel.memory, process.task, addr >> PAGE_SHIFT, RESIDENT_PAGES, scene.home.nid
        )
        notes.append(f"{done.pages} moved" if not done.error else _errno(done.error))


def _pin(scene: Scene, notes: list[str]) -> None:
    for process, addr in scene.residents.values():
        try:
            process.pin(addr, RESIDENT_PAGES * PAGE_SIZE, write=False)
            notes.append("pinned")
        except OSError as failure:
            notes.append(_errno(-(failure.errno or 0)))


def _pageout(scene: Scene, notes: list[str]) -> None:
    swap.swapon(scene.kernel.memory, SWAP_PAGES)
    areas = [scene.moved_in(nid, RESIDENT_PAGES) for nid in scene.private]
    scene.begin()
    for process, addr in areas:
        try:
            process.madvise(addr, RESIDENT_PAGES * PAGE_SIZE, 21)
        except OSError as failure:
            notes.append(_errno(-(failure.errno or 0)))


# -- moves


def _move_onto(scene: Scene, notes: list[str]) -> None:
    for nid in scene.private:
        process = scene.user()
        addr = scene.area(process, TRIED_PAGES)
        process.touch(addr, TRIED_PAGES * PAGE_SIZE)
        addrs = [addr + n * PAGE_SIZE for n in range(TRIED_PAGES)]
        try:
            process.move_pages(addrs, [nid] * TRIED_PAGES)
            process.migrate_pages([scene.home.nid], [nid])
        except OSError as failure:
            notes.append(_errno(-(failure.errno or 0)))


def _move_off(scene: Scene, notes: list[str]) -> None:
    for nid, (process, addr) in scene.residents.items():
        addrs = [addr + n * PAGE_SIZE for n in range(RESIDENT_PAGES)]
        try:
            process.move_pages(addrs, [scene.home.nid] * RESIDENT_PAGES)
            process.migrate_pages([nid], [scene.home.nid])
            process.mbind(addr, RESIDENT_PAGES * PAGE_SIZE, Mpol.BIND, [scene.home.nid], MPOL_MF_MOVE)
        except OSError as failure:
            notes.append(_errno(-(failure.errno or 0)))


def _mems_edit(scene: Scene, notes: list[str]) -> None:
    """The applications' cpuset loses the private nodes."""
    scene.kernel.create_cgroup("apps")
    for process, _ in scene.residents.values():
        scene.kernel.attach(process, "apps")
    notes.append(_errno(scene.kernel.write_mems("apps", [scene.home.nid, scene.away.nid])))
    notes.append(_errno(scene.kernel.write_mems("apps", [scene.home.nid])))


def _offline(scene: Scene, notes: list[str]) -> None:
    notes.extend(_errno(scene.kernel.offline(nid)) for nid in scene.private)


def _messages(scene: Scene, _notes: list[str]) -> None:
    """Buffers for the first private node's device, more than it has; and for a device without memory."""
    memory, nid = scene.kernel.memory, min(scene.private)
    for _ in range(scene.private[nid].pages + TRIED_PAGES):
        netbuf.alloc_buffer(memory, nid, scene.home.nid, "network")
    for _ in range(TRIED_PAGES):
        netbuf.alloc_buffer(memory, None, scene.home.nid, "network")


def _memory_failure(scene: Scene, notes: list[str]) -> None:
    """A hardware error under a page of each application; what matters is who is told."""
    memory = scene.kernel.memory
    for nid, (process, addr) in scene.residents.items():
        vma = process.task.mm.find(addr >> PAGE_SHIFT)
        assert vma is not None
        pfn = int(memory.page_table.pte[vma.slot_of(addr >> PAGE_SHIFT)]) >> 5
        told = scene.kernel.memory_failure(pfn).told
        scene.reckoned[nid] = int(not told)
        notes.append(f"node {nid}: {told or 'nobody'} told")


def _errno(result: int) -> str:
    return "ok" if result >= 0 else errno.errorcode.get(-result, str(result))


USER = (Feature.USER_NUMA,)

MOVING: tuple[Activity, ...] = (
    Activity("page fault, no policy", "blocked everywhere", _faults),
    Activity("alloc_pages_node(P)", "falls over to a general node", _alloc(False), zone=ZONE_NORMAL),
    Activity(
        "alloc_pages_node(P), THISNODE", "no-fallback: this is the door", _alloc(True), zone=ZONE_NORMAL
    ),
    Activity(
        "owner's request, node preferred only",
        "first version: may land on another device's node; union lists too",
        _private_preferred,
        first_private,
    ),
    Activity("kmalloc_node(P)", "no-fallback: leak, it adds THISNODE itself", _kmalloc, zone=ZONE_NORMAL),
    Activity("hotplug's per-node structures", "fall back to a general node", _hotplug, zone=ZONE_NORMAL),
    Activity(
        "walkers of possible nodes", "no-fallback: leak with THISNODE", _walk_possible, zone=ZONE_NORMAL
    ),
    Activity("walkers of online nodes, tracer", "no-fallback: leak", _walk_online, zone=ZONE_NORMAL),
    Activity("contiguous range by address, stranger", "explicit guard needed", _contig_by_address),
    Activity("contiguous search naming P", "general nodes only", _contig_search),
    Activity(
        "huge page pool of node P",
        "no-fallback: leak; else by capability",
        _hugetlb_node,
        wished(Feature.USER_NUMA, Feature.HUGETLB),
        zone=ZONE_NORMAL,
    ),
    Activity(
        "global huge page pool",
        "reaches nodes opted in to policies",
        _hugetlb_global,
        wished(Feature.USER_NUMA, Feature.HUGETLB),
        zone=ZONE_NORMAL,
    ),
    Activity("bind naming P", "only where the node opted in", _policy(Mpol.BIND, False), wished(*USER)),
    Activity("interleave naming P", "by design", _policy(Mpol.INTERLEAVE, True), wished(*USER)),
    Activity("preferred naming P", "by design", _policy(Mpol.PREFERRED, False), wished(*USER)),
    Activity("cpuset rebind by position", "could map a general position onto P", _rebind),
    Activity("stale bind, node id reused", "scrubbed in the later versions only", _stale_bind),
    Activity("page cache by read(2), task bound to P", "must never touch P", _cache_under_task_policy),
    Activity("page cache left by a bound mapping", "first version: stays on P", _cache_left_behind),
    Activity(
        "page tables of a task bound to P", "on P where its zone takes them", _page_tables, zone=ZONE_NORMAL
    ),
    Activity(
        "reclaim of P's pages", "only with RECLAIM", _reclaim, wished(Feature.RECLAIM), own=_owners_frames
    ),
    Activity("MADV_PAGEOUT", "only with RECLAIM", _pageout, wished(Feature.RECLAIM)),
    Activity(
        "demotion into P, and out of it",
        "only with DEMOTION",
        _demotion,
        wished(Feature.DEMOTION),
        demotion=True,
    ),
    Activity(
        "NUMA balancing", "only with the bit", _hint_faults, wished(Feature.NUMA_BALANCING), balancing=1
    ),
    Activity(
        "promotion by hint faults",
        "only with the bit",
        _hint_faults,
        wished(Feature.NUMA_BALANCING),
        balancing=2,
    ),
    Activity("compaction", "only with the right", _compaction, wished(Feature.COMPACTION, Feature.RECLAIM)),
    Activity("KSM", "only with the bit", _ksm, wished(Feature.KSM)),
    Activity("khugepaged", "never", _collapse(True)),
    Activity("MADV_COLLAPSE", "by design", _collapse(False), wished(Feature.COLLAPSE, Feature.USER_NUMA)),
    Activity("DAMON", "only with the bit", _damon, wished(Feature.DAMON, Feature.MIGRATION)),
    Activity("long-term pin", "in place with the bit, else ENOMEM", _pin, works=wished(Feature.LONGTERM_PIN)),
    Activity("user moves onto P", "only where the node opted in", _move_onto, wished(*USER)),
    Activity(
        "user moves off P",
        "only where the node opted in",
        _move_off,
        wished(Feature.USER_NUMA, Feature.MIGRATION),
    ),
    Activity("cpuset loses P", "resident pages stay", _mems_edit),
    Activity("hot-unplug of P", "pages are moved out; disputed", _offline, wished(Feature.HOTUNPLUG)),
    Activity(
        "message buffers of one device",
        "never from another's node",
        _messages,
        first_private,
        zone=ZONE_NORMAL,
    ),
    Activity(
        "memory failure", "the owner is told", _memory_failure, lambda scene: set(scene.private), works=nobody
    ),
)
