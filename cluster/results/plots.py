"""What the report plots, from the tables of a run: one function a figure.

Every figure is always there, so that a reader finds it: when a run has nothing for it, it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from privmem.cluster.results import cram_plots, pool_plots
from privmem.cluster.results.figures import (
    DASHES,
    PALETTE,
    SHOWN_MAX,
    Figure,
    Panel,
    TimeAxis,
    area,
    class_colour,
    in_larger_unit,
    limit,
    line,
    line_styles,
    marks,
)
from privmem.cluster.results.intervals import Track, grid_of, held, steps, tracks_of, until
from privmem.cluster.results.series import short_name
from privmem.scheduler.abi import PAGE_SIZE

_MIB = 2**20
_PAGES_PER_MIB = _MIB // PAGE_SIZE
#: Marks in a panel from which on they are drawn smaller.
DENSE = 200


@dataclass(frozen=True, slots=True)
class Event:
    """A vmstat counter of the fault or the migration plot, and how it looks there."""

    counter: str
    label: str
    colour: str
    symbol: str = "circle"
    size_px: int = 5


FAULTS = (
    # The total lies under its parts, which may be all of it.
    Event("pgfault", "all page faults (pgfault)", "#c4c4c4", size_px=10),
    Event("pgpromote_fence", "writes to compressed RAM (pgpromote_fence)", PALETTE[1]),
    Event("numa_hint_faults", "NUMA hint faults (numa_hint_faults)", PALETTE[0]),
    Event("pgmajfault", "reads of a file (pgmajfault)", PALETTE[5]),
    Event("pgcow", "copies on write (pgcow)", PALETTE[2]),
)
_DOWN, _UP = "triangle-down", "triangle-up"
MIGRATIONS = (
    Event("pgdemote_kswapd", "demoted in the background (pgdemote_kswapd)", PALETTE[0], _DOWN, 7),
    Event("pgdemote_direct", "demoted while an allocation waits (pgdemote_direct)", PALETTE[4], _DOWN, 7),
    Event("pgpromote_fence", "promoted by a write to compressed RAM (pgpromote_fence)", PALETTE[1], _UP, 7),
    Event("pgpromote_success", "promoted by NUMA sampling (pgpromote_success)", PALETTE[3], _UP, 7),
    Event("pgpromote_owner", "promoted by the node's driver (pgpromote_owner)", PALETTE[5], _UP, 7),
)


@dataclass(frozen=True, slots=True)
class Material:
    """What the plots are made from."""

    hosts: dict[str, Track]
    nodes: dict[str, dict[int, Track]]
    devices: dict[str, Track]
    grants: dict[str, dict[str, Track]]
    #: Device -> host -> the scheduler's samples.
    asked: dict[str, dict[str, Track]]
    cram: list[cram_plots.Node]
    #: "host", nid -> class of the device behind it; name -> class; names of private nodes.
    node_class: dict[tuple[str, int], str]
    device_class: dict[str, str]
    private: set[tuple[str, int]]
    grid: np.ndarray
    axis: TimeAxis
    #: Every n-th instant is plotted.
    every: int

    @classmethod
    def of(cls, summary: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> Material:
        """Group the tables by name, and look up what is behind each node."""
        wanted = {name: tables[name] for name in ("host", "host_node", "device", "scheduler")}
        grid, every = grid_of(wanted)
        nodes: dict[str, dict[int, Track]] = {}
        for (host, nid), track in tracks_of(tables["host_node"], ("host", "nid")).items():
            nodes.setdefault(host, {})[nid] = track
        device_class = {name: str(d.get("class", "?")) for name, d in summary.get("devices", {}).items()}
        node_class, private = _nodes(summary, device_class)
        asked: dict[str, dict[str, Track]] = {}
        for (device, host), track in tracks_of(tables["scheduler"], ("device", "host")).items():
            asked.setdefault(device, {})[host] = track
        devices = {name: track for (name,), track in tracks_of(tables["device"], ("device",)).items()}
        return cls(
            hosts={host: track for (host,), track in tracks_of(tables["host"], ("host",)).items()},
            nodes=nodes,
            devices=devices,
            grants=_grants(summary, asked, nodes),
            asked=asked,
            cram=cram_plots.nodes_of(summary, tables, devices),
            node_class=node_class,
            device_class=device_class,
            private=private,
            grid=grid,
            axis=TimeAxis.of(max(int(summary.get("virtual_ns", 0)), int(grid[-1]), 1)),
            every=every,
        )

    def shown(self, names: Sequence[str], what: str, table: str) -> tuple[list[str], str]:
        """(the names that are plotted, what to say about the others)."""
        shown = list(names[:SHOWN_MAX])
        more = len(names) - len(shown)
        return shown, f"{more} more {what} are in {table}.parquet." if more else ""


def all_figures(summary: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> tuple[list[Figure], Material]:
    """All plots of the report, in their order."""
    material = Material.of(summary, tables)
    makers = (
        *(occupancy, access_nodes, latency, faults, migrations, ratio, fill),
        *(cram_capacity, cram_states, cram_lost),
        *(pool, pool_shares, pool_saving, loaded, traffic),
    )
    return [in_larger_unit(make(material)) for make in makers], material


def occupancy(m: Material) -> Figure:
    """Used memory of each host, stacked by node."""
    hosts, note = m.shown(list(m.nodes), "hosts", "host_node")
    panels = []
    for host in hosts:
        panel = Panel(host if len(m.nodes) > 1 else "")
        grid = until(m.grid, _last_ns(m.nodes[host]))
        online = np.zeros(len(grid))
        for nid, name, colour in _styled_nodes(m, host):
            track = m.nodes[host][nid]
            present = held(track, grid, "present_pages")
            online += present / _PAGES_PER_MIB
            used = (present - held(track, grid, "free_pages")) / _PAGES_PER_MIB
            panel.traces.append(area(name, colour, m.axis.values(grid), used, unit="MiB"))
        panel.traces.append(limit("all memory online", m.axis.values(grid), online, unit="MiB"))
        panels.append(panel)
    return Figure(
        "Memory in use, by node",
        "Where each host keeps its pages. A host fills its nearest memory first; what is not used for a while "
        "sinks to the layers above it in the plot. Memory of a pooled device comes online as the host is "
        "granted some.",
        "MiB",
        panels,
        empty="No samples of nodes.",
        note=note,
    )


def access_nodes(m: Material) -> Figure:
    """Share of each node in the accesses of an interval."""
    hosts, note = m.shown(list(m.nodes), "hosts", "host_node")
    panels = []
    for host in hosts:
        panel = Panel(host if len(m.nodes) > 1 else "")
        grid = until(m.grid, _last_ns(m.nodes[host]))
        parts = {nid: track.delta(grid, "accesses") for nid, track in m.nodes[host].items()}
        total = np.asarray(sum(parts.values()))
        # Up to the last access: afterwards there is nothing to share out.
        ended = int(np.flatnonzero(total)[-1]) + 1 if total.any() else 0
        for nid, name, colour in _styled_nodes(m, host):
            share = steps((100 * parts[nid] / np.maximum(total, 1))[:ended])
            panel.traces.append(area(name, colour, m.axis.values(grid[: ended + 1]), share, unit="%"))
        panels.append(panel)
    return Figure(
        "Where accesses go, by node",
        "Which node answered the memory accesses that the host's processes made in each interval. The more of "
        "them reach the first node, the better the placement.",
        "% of accesses",
        panels,
        empty="No samples of nodes.",
        note=note,
        y_max=100,
    )


def latency(m: Material) -> Figure:
    """Mean cost of an access, without and with faults."""
    hosts, note = m.shown(list(m.hosts), "hosts", "host")
    styles = line_styles(hosts)
    panels = [Panel("the access alone"), Panel("page faults included")]
    for host in hosts:
        track = m.hosts[host]
        grid = until(m.grid, int(track.time_ns[-1]))
        accesses = track.delta(grid, "accesses")
        alone = track.delta(grid, "access_ns")
        colour, dash = styles[host]
        for panel, spent in zip(panels, (alone, alone + track.delta(grid, "fault_ns")), strict=True):
            mean = np.where(accesses > 0, spent / np.maximum(accesses, 1), np.nan)
            panel.traces.append(
                line(host, colour, m.axis.values(grid), steps(mean), unit="ns", digits=0, line={"dash": dash})
            )
    return Figure(
        "Mean latency of an access",
        "How long a process's access to memory takes on average, in each interval: on the left only the access "
        "to the node where the page is, on the right with the time that the kernel takes to handle page faults. "
        "The scale is logarithmic.",
        "ns an access",
        panels if hosts else [],
        empty="No samples of hosts.",
        note=note,
        log=True,
    )


def faults(m: Material) -> Figure:
    """Faults a second."""
    return _events(
        m,
        FAULTS,
        "Page faults",
        "How often an access had to wait for the kernel, per second of virtual time: on first touch of a page, "
        "on a write to a page of compressed RAM (such pages are read-only; the write moves the page back to "
        "ordinary memory), or to sample who uses a page. The first counts them all.",
    )


def migrations(m: Material) -> Figure:
    """Demotions and promotions a second."""
    return _events(
        m,
        MIGRATIONS,
        "Demotion and promotion",
        "Pages moved between nodes, per second of virtual time. Demotion takes pages that were not used for a "
        "while to slower memory; promotion brings back what is used or written.",
    )


def ratio(m: Material) -> Figure:
    """Compression ratio of the devices that compress."""
    names = [name for name, track in m.devices.items() if _compresses(m, name, track)]
    return _by_device(
        m,
        names,
        "Compression ratio",
        "Bytes that hosts stored on a compressed device for each byte of its memory that they take up. "
        "Whatever is lost to rounding up to granules counts against it.",
        "ratio",
        lambda track, grid: _quotient(held(track, grid, "logical_bytes"), held(track, grid, "used_bytes")),
        unit="to 1",
        empty="No device compressed anything.",
    )


def fill(m: Material) -> Figure:
    """How full the storing devices are."""
    names = [name for name, track in m.devices.items() if track.has("used_bytes")]
    return _by_device(
        m,
        names,
        "Physical memory used on devices that store pages",
        "Used share of each device's own memory. A compressed device that fills up refuses further pages "
        "before it is full; nothing is lost, unless pages are written in place.",
        "% of capacity",
        lambda track, grid: (
            100 * _quotient(held(track, grid, "used_bytes"), held(track, grid, "capacity_bytes"))
        ),
        unit="%",
        empty="No device stored anything.",
        y_max=105,
    )


def pool(m: Material) -> Figure:
    """Grants of pooled devices by host."""
    devices, note = m.shown(list(m.grants), "pooled devices", "scheduler")
    hosts = sorted({host for by_host in m.grants.values() for host in by_host})
    largest = sorted(hosts, key=lambda h: -max(_last(by.get(h)) for by in m.grants.values()))[:SHOWN_MAX]
    styles = line_styles(host for host in hosts if host in largest)
    panels, grid = [], m.grid
    for device in devices:
        panel = Panel(device)
        for host, (colour, _) in styles.items():
            if host in m.grants[device]:
                pages = held(m.grants[device][host], grid, _pages_column(m.grants[device][host]))
                panel.traces.append(
                    area(host, colour, m.axis.values(grid), pages / _PAGES_PER_MIB, unit="MiB")
                )
        if device in m.devices:
            capacity = np.full(len(grid), m.devices[device].columns["capacity_bytes"].max() / _MIB)
            panel.traces.append(limit("capacity", m.axis.values(grid), capacity, unit="MiB"))
        panels.append(panel)
    if len(hosts) > len(largest):
        note = f"The {len(largest)} hosts that hold most; all are in scheduler.parquet. {note}".strip()
    return Figure(
        "Pooled memory granted to hosts",
        "How much of each pooled device every host holds. Hosts get it in extents, on demand, and keep it for "
        "themselves until they give it back.",
        "MiB",
        panels,
        empty="No pooled device was used.",
        note=note,
    )


def pool_shares(m: Material) -> Figure:
    """What hosts hold of pools beside what is due to them."""
    return pool_plots.shares(m.asked, m.grid, m.axis)


def pool_saving(m: Material) -> Figure:
    """What sharing pools saves."""
    return pool_plots.sharing(m.grants, m.grid, m.axis)


def cram_capacity(m: Material) -> Figure:
    """What fits into compressed RAM."""
    return cram_plots.capacity(m.cram, m.grid, m.axis)


def cram_states(m: Material) -> Figure:
    """What state its service is in."""
    return cram_plots.states(m.cram, m.grid, m.axis)


def cram_lost(m: Material) -> Figure:
    """What was lost because it was written in place."""
    return cram_plots.lost(m.cram, m.grid, m.axis)


def loaded(m: Material) -> Figure:
    """Loaded latency of devices."""
    return _by_class(
        m,
        "Latency of devices under load",
        "What one read takes at the device in each interval. It rises with the traffic of the interval before; "
        "a flat line is a device that was never busy. The scale is logarithmic.",
        "ns a read",
        lambda track, grid: held(track, grid, "read_ns"),
        unit="ns",
        log=True,
    )


def traffic(m: Material) -> Figure:
    """Bytes read and written a second."""
    return _by_class(
        m,
        "Traffic of devices",
        "Bytes that hosts read from and wrote to each device, accesses and moved pages together, per second of "
        "virtual time.",
        "MiB a second",
        lambda track, grid: steps(track.rate(grid, "read_bytes") + track.rate(grid, "write_bytes")) / _MIB,
        unit="MiB/s",
        log=False,
    )


# -- shared by several figures


def _nodes(
    summary: Mapping[str, Any], device_class: Mapping[str, str]
) -> tuple[dict[tuple[str, int], str], set[tuple[str, int]]]:
    classes, private = {}, set()
    for host, entry in summary.get("hosts", {}).items():
        for nid, node in entry.get("nodes", {}).items():
            classes[(host, int(nid))] = device_class.get(short_name(str(node.get("device", ""))), "?")
            if node.get("private"):
                private.add((host, int(nid)))
    return classes, private


def _grants(
    summary: Mapping[str, Any], asked: dict[str, dict[str, Track]], nodes: dict[str, dict[int, Track]]
) -> dict[str, dict[str, Track]]:
    """What each host holds of each pooled device: by the host's own samples, as it sends one every time."""
    devices = summary.get("devices", {})
    grants: dict[str, dict[str, Track]] = {}
    for host, entry in summary.get("hosts", {}).items():
        for nid, node in entry.get("nodes", {}).items():
            device = short_name(str(node.get("device", "")))
            track = nodes.get(host, {}).get(int(nid))
            if track is not None and devices.get(device, {}).get("pooled") and track.has("present_pages"):
                grants.setdefault(device, {})[host] = track
    # An interrupted run does not know which node is behind what.
    return grants if summary.get("hosts") else asked


def _styled_nodes(m: Material, host: str) -> list[tuple[int, str, str]]:
    """(nid, name in the legend, colour) of a host's nodes."""
    seen: dict[str, int] = {}
    styled = []
    for nid in m.nodes[host]:
        kind = m.node_class.get((host, nid), "?")
        colour = class_colour(kind, seen.get(kind, 0))
        seen[kind] = seen.get(kind, 0) + 1
        private = ", private" if (host, nid) in m.private else ""
        name = f"node {nid}" if kind == "?" else f"node {nid}: {kind}{private}"
        styled.append((nid, name, colour))
    return styled


def _events(m: Material, events: Sequence[Event], title: str, text: str) -> Figure:
    """Rates of vmstat counters, a panel a host; counters that stayed at zero are named, not drawn."""
    hosts, note = m.shown(list(m.hosts), "hosts", "host")
    drawn = [event for event in events if any(m.hosts[host].has(event.counter) for host in hosts)]
    panels = []
    for host in hosts:
        panel = Panel(host if len(m.hosts) > 1 else "")
        track = m.hosts[host]
        grid = until(m.grid, int(track.time_ns[-1]))
        x = m.axis.values(grid[1:])
        for event in drawn:
            rate = track.rate(grid, event.counter)
            style = {"color": event.colour, "symbol": event.symbol}
            size_px = event.size_px if len(x) < DENSE else event.size_px - 2
            y = np.where(rate > 0, rate, np.nan)
            panel.traces.append(marks(event.label, x, y, unit="/s", size=size_px, **style))
        panels.append(panel)
    zero = [event.label for event in events if event not in drawn]
    if drawn and zero:
        note = f"None in the whole run: {'; '.join(zero)}. {note}".strip()
    text += " Each mark is an interval; where there is no mark, there was none. The scale is logarithmic."
    empty = "None in the whole run."
    return Figure(title, text, "a second", panels if drawn else [], empty=empty, note=note, log=True)


def _by_device(
    m: Material, names: Sequence[str], title: str, text: str, y_title: str, value: Any, **more: Any
) -> Figure:
    """A line a device in one panel."""
    unit = more.pop("unit")
    shown, note = m.shown(names, "devices", "device")
    panel, grid = Panel(""), m.grid
    for name, (colour, dash) in line_styles(shown).items():
        kind = m.device_class.get(name)
        label = f"{name} ({kind})" if kind else name
        values = value(m.devices[name], grid)
        panel.traces.append(line(label, colour, m.axis.values(grid), values, unit=unit, line={"dash": dash}))
    return Figure(title, text, y_title, [panel] if shown else [], note=note, **more)


def _by_class(
    m: Material, title: str, text: str, y_title: str, value: Any, *, unit: str, log: bool
) -> Figure:
    """A panel a device class, in it a line a device: those with the most traffic."""
    classes: dict[str, list[str]] = {}
    for name in m.devices:
        classes.setdefault(m.device_class.get(name, "devices"), []).append(name)
    busiest = {
        kind: sorted(sorted(names, key=lambda name: -_moved_bytes(m.devices[name]))[:SHOWN_MAX])
        for kind, names in classes.items()
    }
    styles = line_styles(name for names in busiest.values() for name in names)
    panels, x = [], m.axis.values(m.grid)
    for kind, names in busiest.items():
        panel = Panel(kind)
        for at, name in enumerate(names):
            colour, dash = styles[name]
            if log:
                # Equal devices have equal latencies: a dashed line lets the one that it covers show.
                dash = DASHES[at % len(DASHES)]
            values = value(m.devices[name], m.grid)
            panel.traces.append(line(name, colour, x, values, unit=unit, digits=0, line={"dash": dash}))
        panels.append(panel)
    left_out = len(m.devices) - len(styles)
    note = (
        f"The {SHOWN_MAX} busiest of each class; {left_out} more are in device.parquet." if left_out else ""
    )
    return Figure(title, text, y_title, panels, empty="No samples of devices.", note=note, log=log)


def _compresses(m: Material, name: str, track: Track) -> bool:
    if name in m.device_class:
        return m.device_class[name] == "compressed-ram" and track.has("used_bytes")
    return track.has("compressed_bytes")


def _quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _last_ns(nodes: Mapping[int, Track]) -> int:
    return max(int(track.time_ns[-1]) for track in nodes.values())


def _moved_bytes(track: Track) -> int:
    return sum(int(track.columns[c][-1]) for c in ("read_bytes", "write_bytes") if c in track.columns)


def _last(track: Track | None) -> int:
    return int(track.columns[_pages_column(track)][-1]) if track else 0


def _pages_column(track: Track) -> str:
    return "granted_pages" if "granted_pages" in track.columns else "present_pages"
