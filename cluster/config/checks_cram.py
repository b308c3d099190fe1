"""Rules of compressed nodes: which service they may have, and what a node without write control needs."""

from __future__ import annotations

from collections.abc import Iterator

from privmem.cluster.config.checks_host import Mistake, open_to_writes
from privmem.cluster.config.fields import wrong
from privmem.cluster.config.models import CompressedRam, Config, DeviceConfig, NodeConfig
from privmem.cluster.config.shape import Path
from privmem.cluster.config.units import format_size
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.isolation import get_design

#: Generations that a design can carry, by its label: its own, and F3 wherever there is a private list.
_CARRIED = {"v4": ("v4",), "nofb": ("F1",), "F3": ("F3",)}


def cram_mistakes(config: Config) -> Iterator[Mistake]:
    """Every mistake of services, of thresholds and of swap areas."""
    label = get_design(config.design).label
    carried = _CARRIED.get(label, ("F1", "F3"))
    for n, host in enumerate(config.hosts):
        place: Path = ("hosts", n)
        if host.swap_bytes % PAGE_SIZE:
            text = wrong(format_size(host.swap_bytes), "a multiple of the 4KiB page")
            yield Mistake((*place, "swap"), text)
        first: Path | None = None
        service = ""
        for m, node in enumerate(host.nodes):
            here: Path = (*place, "nodes", m)
            device = node.memory or config.devices.get(node.device or "")
            yield from _node(node, device, carried, config.design, here)
            if not isinstance(device, CompressedRam):
                continue
            if first is not None and node.service != service:
                uses = ((*here, "service"), (*first, "service"))
                text = wrong(f"{node.service!r} beside {service!r} on another node", "the same on all nodes")
                yield Mistake((*here, "service"), text, uses)
            first, service = first or here, service or node.service


def _node(
    node: NodeConfig, device: DeviceConfig | None, carried: tuple[str, ...], design: str, here: Path
) -> Iterator[Mistake]:
    service, control = (*here, "service"), (*here, "write_control")
    if not node.write_control and (node.service == "lease" or "user_write" not in node.features):
        text = wrong("no write control", "with a `service` that is no lease, and the feature user_write")
        yield Mistake(control, text, (control, service, (*here, "features")))
    if node.memory is None and isinstance(device, CompressedRam) and open_to_writes(node):
        text = wrong("compressed RAM that users may write in place", "a private node without user_write")
        uses = ((*here, "device"), (*here, "private"), (*here, "features"), control, service)
        yield Mistake((*here, "device"), text, uses)
    if node.service == "lease":
        return
    if not isinstance(device, CompressedRam) or not node.private or device.pooled:
        text = wrong(repr(node.service), "lease, but on a private node of compressed RAM that is not pooled")
        yield Mistake(service, text, (service, (*here, "memory"), (*here, "device"), (*here, "private")))
    elif node.service not in carried:
        text = wrong(f"{node.service!r}, which {design} cannot carry", ", ".join(("lease", *carried)))
        yield Mistake(service, text, (service, ("design",)))
    if isinstance(device, CompressedRam) and device.high_threshold_permille <= device.low_threshold_permille:
        text = wrong(f"{device.high_threshold_permille / 1000}", "more than the low_threshold")
        where: Path = (*here, "memory", "high_threshold") if node.memory else ("devices", node.device or "")
        yield Mistake(where, text, (where, service))
