"""Rules of a configuration that span several fields: the run, its devices, its recordings.

`checks_host.py` has those of one host. Each mistake names the places that it was concluded from, so that it
is dropped when one of them is broken by itself and was only filled in for the check (`problems.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from privmem.cluster.config import checks_cram, checks_host, checks_pool, checks_work
from privmem.cluster.config.base import CAPACITY_MAX_BYTES
from privmem.cluster.config.checks_design import check_design
from privmem.cluster.config.checks_host import Mistake, not_among
from privmem.cluster.config.fields import nearest, wrong
from privmem.cluster.config.models import (
    EXTENT_DEFAULT_BYTES,
    CompressedRam,
    Config,
    DeviceConfig,
    PluginDevice,
    ProcessConfig,
    device_of,
    seen_bytes,
)
from privmem.cluster.config.shape import Path
from privmem.cluster.config.tree import found
from privmem.cluster.config.units import format_size, format_time
from privmem.cluster.config.workload_models import RecordingContent, ReplayWorkload
from privmem.cluster.errors import TraceError
from privmem.scheduler.abi import PAGE_SIZE

#: Highest level of each codec: LZ4HC_CLEVEL_MAX of lz4, and zstd's without its "ultra" memory needs is 19,
#: with 22.
_LEVEL_MAX = {"lz4": 12, "none": 0, "zstd": 22}


def check_config(config: Config) -> list[Mistake]:
    """Every mistake that no field shows on its own."""
    mistakes = [
        *_engine(config),
        *_names(config),
        *_devices(config),
        *_device_users(config),
        *_capacity(config),
        *checks_cram.cram_mistakes(config),
    ]
    for n, host in enumerate(config.hosts):
        place: Path = ("hosts", n)
        of_host = [*checks_host.check_host(host, place), *checks_work.check_workloads(host, place)]
        mistakes += of_host or check_design(config, host, place)
    return mistakes + list(_recordings(config))


def _engine(config: Config) -> Iterator[Mistake]:
    times_ns = {key: getattr(config.engine, f"{key}_ns") for key in ("slice", "epoch", "duration")}
    for short, long in (("epoch", "duration"), ("slice", "epoch")):
        if times_ns[short] > times_ns[long]:
            text = wrong(format_time(times_ns[short]), f"at most the {long}, {format_time(times_ns[long])}")
            yield Mistake(("engine", short), text, (("engine", short), ("engine", long)))


def _names(config: Config) -> Iterator[Mistake]:
    first: dict[str, int] = {}
    for n, host in enumerate(config.hosts):
        for name in host.names:
            if name in first:
                text = wrong(f"the host name {name!r}, taken by hosts.{first[name]}", "another name")
                yield Mistake(("hosts", n, "name"), text, (*_name_of(n), *_name_of(first[name])))
                break
            first[name] = n


def _name_of(n: int) -> tuple[Path, ...]:
    return (("hosts", n, "name"), ("hosts", n, "count"))


def _devices(config: Config) -> Iterator[Mistake]:
    host_names = [name for host in config.hosts for name in host.names]
    name_places = tuple(place for n in range(len(config.hosts)) for place in _name_of(n))
    for name, device in config.devices.items():
        place: Path = ("devices", name)
        yield from _device(device, place, sorted(config.plugins))
        yield from checks_pool.pool_mistakes(config, name, host_names, name_places)
    for n, entry in enumerate(config.hosts):
        for m, node in enumerate(entry.nodes):
            if node.memory is None:
                continue
            place = ("hosts", n, "nodes", m, "memory")
            yield from _device(node.memory, place, sorted(config.plugins))
            if node.memory.pooled:
                text = wrong("true for a device of one node", "false, or a device under `devices`")
                yield Mistake((*place, "pooled"), text)


def _device(device: DeviceConfig, place: Path, known: Sequence[str]) -> Iterator[Mistake]:
    if isinstance(device, PluginDevice) and device.plugin not in known:
        loaded = ", ".join(known) or "there is none"
        allowed = f"a class of a plug-in that is loaded ({loaded}); name its file with --plugin"
        yield Mistake((*place, "plugin"), wrong(repr(device.plugin), allowed))
    sizes = {"capacity": device.capacity_bytes}
    if isinstance(device, CompressedRam):
        sizes |= {"perceived": device.perceived_bytes, "block_cache": device.block_cache_bytes}
        yield from _compression(device, place)
    for key, size_bytes in sizes.items():
        if size_bytes % PAGE_SIZE:
            yield Mistake((*place, key), wrong(format_size(size_bytes), "a multiple of the 4KiB page"))
    for key, given in (
        ("extent", device.extent_bytes != EXTENT_DEFAULT_BYTES),
        ("quotas", bool(device.quotas_bytes)),
        ("reservations", bool(device.reservations_bytes)),
        ("weights", bool(device.weights)),
        ("give_back", device.give_back != "none"),
        ("request", device.request_bytes is not None),
        ("removals", bool(device.removals)),
    ):
        if given and not device.pooled:
            text = wrong(f"{key} of a device that is not pooled", "with `pooled: true` only")
            yield Mistake((*place, key), text, ((*place, key), (*place, "pooled")))
    extent = device.extent_bytes
    if device.pooled and (extent & (extent - 1) or device.capacity_bytes % extent):
        capacity = format_size(device.capacity_bytes)
        text = wrong(format_size(extent), f"a power of two that divides the capacity, {capacity}")
        yield Mistake(
            (*place, "extent"), text, tuple((*place, key) for key in ("extent", "capacity", "pooled"))
        )
    curve = device.loaded_latency
    if curve is not None and not _is_curve(curve):
        allowed = "[0, N] first, then pairs of rising utilisation and never falling latency"
        yield Mistake((*place, "loaded_latency"), wrong("another list", allowed))


def _is_curve(curve: tuple[tuple[int, int], ...]) -> bool:
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(curve))
    return bool(curve) and curve[0][0] == 0 and rising


def _compression(device: CompressedRam, place: Path) -> Iterator[Mistake]:
    perceived, capacity = format_size(device.perceived_bytes), format_size(device.capacity_bytes)
    if device.perceived_bytes < device.capacity_bytes:
        text = wrong(perceived, f"at least the capacity, {capacity}")
        yield Mistake((*place, "perceived"), text, ((*place, "perceived"), (*place, "capacity")))
    level_max = _LEVEL_MAX[device.codec]
    if device.level is not None and (device.level > level_max or not level_max * device.level):
        allowed = f"a whole number from 1 to {level_max}, or below 0," if level_max else "no level"
        text = wrong(str(device.level), f"{allowed} with {device.codec}")
        yield Mistake((*place, "level"), text, ((*place, "level"), (*place, "codec")))
    for key, size_bytes in (("granule", device.granule_bytes), ("block", device.block_bytes)):
        if size_bytes & (size_bytes - 1):
            yield Mistake((*place, key), wrong(format_size(size_bytes), "a power of two"))
    if device.granule_bytes > device.block_bytes:
        text = wrong(
            format_size(device.granule_bytes), f"at most the block, {format_size(device.block_bytes)}"
        )
        yield Mistake((*place, "granule"), text, ((*place, "granule"), (*place, "block")))


def _device_users(config: Config) -> Iterator[Mistake]:
    """References to named devices: known, and shared only when pooled."""
    known = list(config.devices)
    first: dict[str, str] = {}
    for n, host in enumerate(config.hosts):
        for m, node in enumerate(host.nodes):
            name = node.device
            place: Path = ("hosts", n, "nodes", m, "device")
            if name is None:
                continue
            if name not in known:
                yield Mistake(place, not_among(name, known, "a device"), (place, ("devices", name)))
            elif not config.devices[name].pooled:
                what = ""
                if name in first:
                    what = f"{name!r}, which backs {first[name]} and is not pooled"
                elif len(host.names) > 1:
                    what = f"{name!r}, which is not pooled, on {len(host.names)} hosts"
                if what:
                    uses: tuple[Path, ...] = (place, ("devices", name, "pooled"), ("hosts", n, "count"))
                    yield Mistake(place, wrong(what, "a device of its own, or a pooled one"), uses)
                first.setdefault(name, f"hosts.{n}.nodes.{m}")


def _capacity(config: Config) -> Iterator[Mistake]:
    """Page frame numbers of a host are int32."""
    for n, host in enumerate(config.hosts):
        total = sum(
            seen_bytes(device) for node in host.nodes if (device := device_of(config, node)) is not None
        )
        if total > CAPACITY_MAX_BYTES:
            text = wrong(
                f"{format_size(total)} of memory", f"at most {format_size(CAPACITY_MAX_BYTES)} on a host"
            )
            yield Mistake(("hosts", n, "nodes"), text, (("hosts", n, "nodes"), ("devices",)))


def _recordings(config: Config) -> Iterator[Mistake]:
    """Recordings can be opened and hold what is asked of them. Their body is checked when the run is
    assembled.
    """
    for n, host in enumerate(config.hosts):
        for m, process in enumerate(host.processes):
            if isinstance(process.workload, ReplayWorkload):
                yield from _recording(config, process, process.workload, ("hosts", n, "processes", m))


def _recording(
    config: Config, process: ProcessConfig, workload: ReplayWorkload, here: Path
) -> Iterator[Mistake]:
    place: Path = (*here, "workload", "recording")
    path = config.recording_path(workload)
    if not path.is_file():
        beside = [str(item.relative_to(config.folder)) for item in config.folder.glob("**/*.pmtrace")]
        hint = nearest(workload.recording, sorted(beside))
        yield Mistake(place, wrong(f"{found(workload.recording)}, no such file", "a .pmtrace file", hint))
        return
    # The reader brings arrays and codecs along: only a configuration with recordings pays for them.
    from privmem.cluster import traces

    try:
        header = traces.read_header(path)
    except TraceError as error:
        yield Mistake(place, wrong(f"a file that is no recording ({error})", "a .pmtrace file"))
        return
    if workload.start and workload.start >= header.nr_accesses:
        text = wrong(str(workload.start), f"less than the {header.nr_accesses} accesses of the recording")
        yield Mistake((*here, "workload", "start"), text, (place, (*here, "workload", "start")))
    if isinstance(process.content, RecordingContent) and not header.nr_images:
        text = wrong(f"{found(workload.recording)}, which holds no pages", "with content of kind: generator")
        yield Mistake(place, text, (place, (*here, "content")))
