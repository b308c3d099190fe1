"""Rules of pooled devices that span several fields: hosts that exist, whole extents, promises that can be kept."""

from __future__ import annotations

from collections.abc import Iterator

from privmem.cluster.config.checks_host import Mistake, not_among
from privmem.cluster.config.fields import wrong
from privmem.cluster.config.models import Config
from privmem.cluster.config.shape import Path
from privmem.cluster.config.units import format_size


def pool_mistakes(
    config: Config, name: str, host_names: list[str], name_places: tuple[Path, ...]
) -> Iterator[Mistake]:
    """Mistakes in how a device under `devices` is shared. `name_places`: where hosts get their names."""
    device = config.devices[name]
    place: Path = ("devices", name)
    named: list[tuple[Path, str]] = []
    for key, by_host in (
        ("quotas", device.quotas_bytes),
        ("reservations", device.reservations_bytes),
        ("weights", device.weights),
    ):
        named += [((*place, key, host), host) for host in by_host]
    named += [((*place, "removals", n, "host"), removal.host) for n, removal in enumerate(device.removals)]
    for here, host in named:
        if host not in host_names:
            yield Mistake(here, not_among(host, host_names, "a host"), (here, *name_places))
    if device.pooled:
        yield from _extents(config, name)
        yield from _promises(config, name)


def _extents(config: Config, name: str) -> Iterator[Mistake]:
    """What must be whole extents, and times within the run."""
    device = config.devices[name]
    place: Path = ("devices", name)
    sizes: list[tuple[Path, int]] = [
        ((*place, "reservations", host), reserved) for host, reserved in device.reservations_bytes.items()
    ]
    sizes += [((*place, "removals", n, "size"), r.size_bytes) for n, r in enumerate(device.removals)]
    if device.request_bytes is not None:
        sizes.append(((*place, "request"), device.request_bytes))
    extent = format_size(device.extent_bytes)
    for here, size_bytes in sizes:
        if size_bytes % device.extent_bytes:
            text = wrong(format_size(size_bytes), f"whole extents of {extent}")
            yield Mistake(here, text, (here, (*place, "extent")))
    for n, removal in enumerate(device.removals):
        if removal.at_ns >= config.engine.duration_ns:
            here = (*place, "removals", n, "at")
            text = wrong("a removal after the end of the run", "a time before `engine.duration`")
            yield Mistake(here, text, (here, ("engine", "duration")))


def _promises(config: Config, name: str) -> Iterator[Mistake]:
    """Reservations within the capacity and within quotas."""
    device = config.devices[name]
    place: Path = ("devices", name)
    reserved = device.reservations_bytes
    if sum(reserved.values()) > device.capacity_bytes:
        together, capacity = format_size(sum(reserved.values())), format_size(device.capacity_bytes)
        text = wrong(f"{together} together", f"no more than the capacity, {capacity}")
        yield Mistake((*place, "reservations"), text, ((*place, "reservations"), (*place, "capacity")))
    for host, quota in device.quotas_bytes.items():
        if host in reserved and reserved[host] > quota:
            here = (*place, "reservations", host)
            text = wrong(format_size(reserved[host]), f"no more than the quota, {format_size(quota)}")
            yield Mistake(here, text, (here, (*place, "quotas", host)))
