"""What the kernel does by itself in a litmus test, when the script lets it."""

from __future__ import annotations

from typing import Any

from privmem.cluster.litmus.driver_verbs import CONTIG_RANGE
from privmem.cluster.litmus.world import World, check
from privmem.nodeagent.host import contig, damon, kmem, netbuf
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT
from privmem.scheduler.abi import PAGE_SHIFT

Values = dict[str, Any]


def _kswapd(world: World, _actor: str, values: Values) -> None:
    world.kernel.kswapd(values.get("node"), wake=True)


def _khugepaged(world: World, _actor: str, _values: Values) -> int:
    return world.kernel.khugepaged()


def _kcompactd(world: World, _actor: str, values: Values) -> int:
    return world.kernel.kcompactd(values["node"], values.get("order", 9))


def _numa_scan(world: World, _actor: str, values: Values) -> None:
    world.kernel.numa_scan(world.process(values["process"]))


def _advance(world: World, _actor: str, values: Values) -> None:
    world.kernel.advance(values["time"])


def _sync(world: World, _actor: str, _values: Values) -> None:
    world.kernel.sync()


def _mark(world: World, _actor: str, _values: Values) -> None:
    world.mark()


def _taken(world: World, values: Values, pfn: int) -> str:
    """Keep a page under the script's name; where it came from."""
    world.taken.setdefault(values["result"] or "pages", []).append(check(pfn))
    return world.node_name(world.kernel.memory.frames.nid_of(pfn))


def _alloc(world: World, _actor: str, values: Values) -> str:
    where = ""
    for _ in range(values.get("number", 1)):
        pfn = kmem.alloc_pages_node(
            world.kernel.memory,
            values["node"],
            "script",
            this_node="thisnode" in values,
            private="private" in values,
            movable="movable" in values,
        )
        where = _taken(world, values, pfn)
    return where


def _kmalloc(world: World, _actor: str, values: Values) -> str:
    pfn = kmem.kmalloc_node(world.kernel.memory, values["node"], "script", "thisnode" in values)
    return _taken(world, values, pfn)


def _walk(world: World, _actor: str, values: Values) -> int:
    memory = world.kernel.memory
    if "possible" in values:
        return kmem.walk_possible_nodes(memory, "walker", "thisnode" in values)
    return kmem.walk_online_nodes(memory, "walker")


def _memtrace(world: World, _actor: str, values: Values) -> int:
    return kmem.memtrace(world.kernel.memory, values["size"] >> PAGE_SHIFT, "memtrace")


def _contig(world: World, _actor: str, values: Values) -> str:
    memory, nid = world.kernel.memory, values["node"]
    first = contig.alloc_contig_pages(
        memory, values["size"] >> PAGE_SHIFT, nid, None, "script", "thisnode" in values, "private" in values
    )
    return world.node_name(memory.frames.nid_of(check(first)))


def _ksm(world: World, _actor: str, _values: Values) -> int:
    return world.kernel.merge_pages()


def _damon(world: World, _actor: str, values: Values) -> int:
    """Pages that DAMON moved; ENOENT when there was nothing that it may touch."""
    mapped = world.mapping("", values["range"])
    task = world.process(mapped.process).task
    area = mapped.addr >> PAGE_SHIFT, mapped.length >> PAGE_SHIFT
    done = damon.migrate_region(world.kernel.memory, task, *area, values["node"])
    check(done.error)
    return done.pages


def _message(world: World, _actor: str, values: Values) -> str:
    memory = world.kernel.memory
    last = -1
    for _ in range(values.get("number", 1)):
        last = check(netbuf.alloc_buffer(memory, values["device"], values["near"], "network"))
    return world.node_name(memory.frames.nid_of(last))


def _memory_failure(world: World, actor: str, values: Values) -> str:
    """A hardware error in the first page of a range; who was told."""
    mapped = world.mapping("", values["range"])
    process = world.process(mapped.process)
    vma = process.task.mm.find(mapped.addr >> PAGE_SHIFT)
    entry = int(world.kernel.memory.page_table.pte[vma.slot_of(mapped.addr >> PAGE_SHIFT)]) if vma else 0
    failure = world.kernel.memory_failure(entry >> PTE_PFN_SHIFT)
    return failure.told or "nobody"


VERBS = [
    ("mark", _mark, "counters of `expect` count from here on"),
    ("kswapd [NODE]", _kswapd, "wake kswapd of a node, or of all, and let it work until it rests"),
    ("khugepaged", _khugepaged, "one scan: huge pages made"),
    ("kcompactd NODE [ORDER:NUMBER]", _kcompactd, "compact a node for blocks of an order (9): pages moved"),
    ("numa_scan PROCESS", _numa_scan, "NUMA balancing takes the access rights of the next stretch of memory"),
    ("advance TIME", _advance, "virtual time passes"),
    ("sync", _sync, "sync(2)"),
    ("ksm", _ksm, "one full scan of ksmd over what was advised mergeable: pages that went for an equal one"),
    ("damon migrate RANGE to NODE", _damon, "DAMON moves the pages of a region: how many"),
    ("kmalloc|kmalloc_node NODE [thisnode]", _kmalloc, "kmalloc_node: where the slab page came from"),
    ("walk possible|online nodes [thisnode]", _walk, "code that allocates for each node: pages that it got"),
    (
        "memtrace SIZE",
        _memtrace,
        "a tracer takes a contiguous range of each online node, with THISNODE: ranges",
    ),
    (
        "alloc_contig_pages SIZE NODE [thisnode|private]...",
        _contig,
        "search a contiguous range from a node on: where it is",
    ),
    CONTIG_RANGE,
    (
        "message of DEVICE:NODE from NEAR:NODE [NUMBER]",
        _message,
        "the network stack takes buffers for a device, on a CPU of a node: where the last came from",
    ),
    (
        "alloc|alloc_pages_node NODE [NUMBER] [thisnode|private|movable]...",
        _alloc,
        "alloc_pages_node: where the (last) page came from; private: with the flag, where the version has one, in "
        "anybody's hands; only movable pages come from movable zones. An owner's call is `driver: alloc`",
    ),
    ("memory_failure RANGE", _memory_failure, "a hardware error in the first page: who was told"),
]
