"""What the kernel does by itself in a litmus test, when the script lets it."""

from __future__ import annotations

from typing import Any

from privmem.cluster.litmus.world import World, check
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page
from privmem.scheduler.abi import PAGE_SHIFT, Reason
from privmem.scheduler.zonelist import AllocRequest

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


def _alloc(world: World, _actor: str, values: Values) -> str:
    """A bare request to the page allocator: where the page came from; -ENOMEM where nothing is reached."""
    kernel = world.kernel
    request = AllocRequest(
        values["node"], None, Reason.KERNEL, "thisnode" in values, "movable" in values, "private" in values
    )
    resolution = kernel.memory.resolver.resolve(request, None)
    context = AllocContext(resolution.zones, Reason.KERNEL, uninvited=resolution.uninvited, request=request)
    pfn = check(alloc_page(kernel.memory, context) if context.zones else -12)
    kernel.hold(pfn)
    world.taken.setdefault(values["result"] or "pages", []).append(pfn)
    return world.node_name(kernel.memory.frames.nid_of(pfn))


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
    (
        "alloc NODE [thisnode|private|movable]...",
        _alloc,
        "alloc_pages_node: where the page came from; with __GFP_THISNODE, or the private request of the design",
    ),
    ("memory_failure RANGE", _memory_failure, "a hardware error in the first page: who was told"),
]
