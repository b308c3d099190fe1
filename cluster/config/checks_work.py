"""Rules of workloads that deal with devices: nodes that they name, parts that must be whole pages."""

from __future__ import annotations

from collections.abc import Iterator

from privmem.cluster.config.checks_host import Mistake
from privmem.cluster.config.fields import wrong
from privmem.cluster.config.models import HostConfig
from privmem.cluster.config.shape import Path
from privmem.cluster.config.units import format_size
from privmem.cluster.config.workload_models import GpuWorkload, MessagesWorkload
from privmem.scheduler.abi import PAGE_SIZE


def check_workloads(host: HostConfig, place: Path) -> list[Mistake]:
    """Every such mistake of a host's processes."""
    mistakes: list[Mistake] = []
    for n, process in enumerate(host.processes):
        here: Path = (*place, "processes", n, "workload")
        workload = process.workload
        if isinstance(workload, GpuWorkload):
            sizes = {"window": workload.window_bytes, "dma": workload.dma_bytes}
            mistakes += [
                *_node(workload.node, host, place, here),
                *_whole_pages(sizes, here),
                *_parts(workload, here),
            ]
        elif isinstance(workload, MessagesWorkload):
            mistakes += [*_node(workload.node, host, place, here), *_burst(workload, here)]
            mistakes += _whole_pages({"message": workload.message_bytes}, here)
    return mistakes


def _node(nid: int | None, host: HostConfig, place: Path, here: Path) -> Iterator[Mistake]:
    """Drivers own private nodes of their host."""
    private = [node.id for node in host.nodes if node.private]
    if nid is None or nid in private:
        return
    known = ", ".join(str(other) for other in private) or "none, as there is none"
    places = tuple((*place, "nodes", n, key) for n in range(len(host.nodes)) for key in ("id", "private"))
    text = wrong(f"{nid}, not a private node of this host", known)
    yield Mistake((*here, "node"), text, ((*here, "node"), *places))


def _whole_pages(sizes: dict[str, int], here: Path) -> Iterator[Mistake]:
    for key, size_bytes in sizes.items():
        if size_bytes % PAGE_SIZE:
            yield Mistake((*here, key), wrong(format_size(size_bytes), "a multiple of the 4KiB page"))


def _parts(workload: GpuWorkload, here: Path) -> Iterator[Mistake]:
    if workload.size_bytes % workload.window_bytes:
        text = wrong(
            format_size(workload.window_bytes), f"a part of the size, {format_size(workload.size_bytes)}"
        )
        yield Mistake((*here, "window"), text, ((*here, "window"), (*here, "size")))


def _burst(workload: MessagesWorkload, here: Path) -> Iterator[Mistake]:
    if workload.burst > workload.burst_every:
        text = wrong(
            f"{workload.burst} messages", f"at most every {workload.burst_every}, when the next one begins"
        )
        yield Mistake((*here, "burst"), text, ((*here, "burst"), (*here, "burst_every")))
