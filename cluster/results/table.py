"""The table that a run prints: numastat for each host, then what moved where, then the devices that store.

Rows are named as in numastat and /proc/vmstat. At most 100 columns wide; hosts of many nodes get several
blocks, and of many hosts the first ones are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

from privmem.cluster.results.cram_table import service_lines
from privmem.cluster.results.series import natural, short_name

PAGES_PER_MIB = 256
_WIDTH = 100
_HOSTS_MAX = 8
_NODES_MAX = 5
_SHARES_MAX = 4
_LABEL = 15
_CELL = 17
_NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")

#: What moved: words for people, and the vmstat counters that are added up.
MOVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("page faults", ("pgfault",)),
    ("demoted", ("pgdemote_kswapd", "pgdemote_direct")),
    ("  of them to compressed RAM", ("demote_compressed",)),
    ("  of them to a pooled device", ("demote_pooled",)),
    ("promoted by hint faults", ("pgpromote_success",)),
    ("promoted by writes to compressed RAM", ("pgpromote_fence",)),
    ("promoted by the node's driver", ("pgpromote_owner",)),
    ("taken by the node's driver", ("pgdemote_owner",)),
    ("moved by a GPU's driver", ("driver_migrate_in", "driver_migrate_back")),
    ("message buffers on their device", ("netbuf_device",)),
    ("message buffers in ordinary memory", ("netbuf_fallback",)),
    ("extents granted", ("extents_granted",)),
    ("extents refused", ("extents_refused",)),
    ("extents given back", ("extents_released",)),
    ("processes killed for want of memory", ("oom_kill",)),
    ("accesses to pages that were lost", ("sigbus",)),
)
#: What is left out where nothing of the kind happened.
_WHEN_THERE_ARE = ("taken", "moved", "message", "processes", "accesses")


def format_table(summary: Mapping[str, Any]) -> str:
    """The whole text of a run's summary. An interrupted run has no hosts in it, and gets an empty text."""
    hosts, devices = by_name(summary, "hosts"), by_name(summary, "devices")
    shown = dict(list(hosts.items())[:_HOSTS_MAX])
    blocks = ["\n".join(_host(name, host, devices)) for name, host in shown.items()]
    if hosts:
        blocks.append("\n".join(_moves(hosts, shown)))
    services = service_lines(shown)
    if services:
        blocks.append("\n".join(services))
    if len(hosts) > len(shown):
        blocks.append(f"and {len(hosts) - len(shown)} more hosts, in summary.json")
    stores = [device_line(name, device) for name, device in devices.items() if device.get("pages_stored")]
    if stores:
        blocks.append("\n".join(fill(text, _WIDTH, subsequent_indent="  ") for text in stores))
    return "\n\n".join(blocks)


def by_name(summary: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The summary's hosts or devices, h2 before h10."""
    entries = summary.get(part, {})
    return {name: entries[name] for name in sorted(entries, key=natural)}


def node_kind(node: Mapping[str, Any], devices: Mapping[str, Any]) -> str:
    """Device class of a node."""
    return str(devices.get(short_name(str(node.get("device", ""))), {}).get("class", "?"))


def node_rows(host: Mapping[str, Any], devices: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(label, a cell for each node) of one host, top to bottom; the first row holds the nodes' names."""
    nodes = host.get("nodes", {})
    total = sum(node.get("accesses", 0) for node in nodes.values())
    rows = [
        ("", [f"node {nid}" for nid in nodes]),
        ("", [node_kind(node, devices) for node in nodes.values()]),
        ("", ["private" if node.get("private") else "" for node in nodes.values()]),
        ("MiB online", [_mib(node.get("present_pages", 0)) for node in nodes.values()]),
        ("MiB used", [_mib(_used(node)) for node in nodes.values()]),
        ("MiB free", [_mib(node.get("free_pages", 0)) for node in nodes.values()]),
    ]
    rows += [(name, [str(node.get(name, 0)) for node in nodes.values()]) for name in _NUMASTAT]
    rows.append(("accesses", [_share(node.get("accesses", 0), total) for node in nodes.values()]))
    return [row for row in rows if any(row[1])]


def moved(host: Mapping[str, Any], events: Iterable[str]) -> int:
    """Sum of some of a host's vmstat counters."""
    return sum(int(host.get("vmstat", {}).get(event, 0)) for event in events)


def device_line(name: str, device: Mapping[str, Any]) -> str:
    """What a device stores, in one line."""
    used, capacity = device.get("used_bytes", 0) / 2**20, device.get("capacity_bytes", 0) / 2**20
    text = f"{name} ({device.get('class', '?')}): {device.get('stored_pages', 0)} pages stored"
    text += f" in {used:.1f} of {capacity:.1f} MiB"
    if device.get("ratio"):
        text += f", {device['ratio']:.2f} to 1"
    granted = {short_name(host): pages for host, pages in device.get("granted_by_host", {}).items() if pages}
    if device.get("pooled"):
        shares = ", ".join(f"{host} {_mib(pages)} MiB" for host, pages in list(granted.items())[:_SHARES_MAX])
        more = ", ..." if len(granted) > _SHARES_MAX else ""
        text += f"; granted: {shares or 'nothing'}{more}"
    return text


def _host(name: str, host: Mapping[str, Any], devices: Mapping[str, Any]) -> list[str]:
    rows = node_rows(host, devices)
    nr_nodes = len(rows[0][1]) if rows else 0
    lines = [f"host {name}"]
    for at in range(0, nr_nodes, _NODES_MAX):
        lines += [_line(label, cells[at : at + _NODES_MAX]) for label, cells in rows]
    return lines


def _line(label: str, cells: Sequence[str]) -> str:
    # A cell that is too wide moves the others of its line: nothing is cut.
    return (label.ljust(_LABEL) + "".join(f" {cell:>{_CELL - 1}}" for cell in cells)).rstrip()


def _moves(hosts: Mapping[str, Any], shown: Mapping[str, Any]) -> list[str]:
    """What moved, by host and for all hosts."""
    width = 37
    cell = min(12, (_WIDTH - width) // (len(shown) + 1))
    names = [*shown, "all hosts"] if len(hosts) > 1 else list(shown)
    lines = ["pages and extents".ljust(width) + "".join(f"{name[: cell - 1]:>{cell}}" for name in names)]
    for label, events in MOVES:
        everywhere = sum(moved(host, events) for host in hosts.values())
        if not everywhere and label.startswith(_WHEN_THERE_ARE):
            continue
        counts = [moved(host, events) for host in shown.values()] + [everywhere]
        lines.append(label.ljust(width) + "".join(f"{n:>{cell}}" for n in counts[: len(names)]))
    return lines


def _used(node: Mapping[str, Any]) -> int:
    return int(node.get("present_pages", 0)) - int(node.get("free_pages", 0))


def _mib(pages: int) -> str:
    return f"{pages / PAGES_PER_MIB:.2f}"


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.2f} %" if total else "0"
