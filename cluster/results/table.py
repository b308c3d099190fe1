"""The table that a run prints: per host and node, after numastat, and what moved where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PAGES_PER_MIB = 256
_COLUMNS = (
    ("node", 4),
    ("kind", 17),
    ("MiB", 7),
    ("used", 7),
    ("free", 7),
    ("numa_hit", 9),
    ("numa_miss", 9),
    ("foreign", 8),
    ("il_hit", 7),
    ("local", 8),
    ("other", 8),
    ("access %", 8),
)
_MOVES = (
    ("faults", "pgfault"),
    ("demoted", ("pgdemote_kswapd", "pgdemote_direct")),
    ("  of them compressed", "demote_compressed"),
    ("  of them to a pool", "demote_pooled"),
    ("promoted: hint faults", "pgpromote_success"),
    ("promoted: write to compressed", "pgpromote_fence"),
    ("promoted: by the pool's owner", "pgpromote_owner"),
    ("extents granted", "extents_granted"),
    ("extents refused", "extents_refused"),
    ("extents given back", "extents_released"),
    ("killed for want of memory", "oom_kill"),
)


def format_table(summary: Mapping[str, Any]) -> str:
    """All hosts of a run's summary, then the devices that keep content; at most 110 columns wide."""
    lines: list[str] = []
    for name, host in summary["hosts"].items():
        lines += [f"host {name}", _row([title for title, _ in _COLUMNS])]
        total = sum(node["accesses"] for node in host["nodes"].values()) or 1
        for nid, node in host["nodes"].items():
            lines.append(_node_row(str(nid), node, summary["devices"], total))
        lines.append("")
    lines += _moves(summary["hosts"]) + [""] + _devices(summary["devices"])
    return "\n".join(lines).rstrip() + "\n"


def _node_row(nid: str, node: Mapping[str, Any], devices: Mapping[str, Any], total: int) -> str:
    device = devices.get(node["device"].removeprefix("device/"), {})
    kind = device.get("class", "?") + ("*" if node["private"] else "")
    present, free = node["present_pages"], node["free_pages"]
    return _row(
        [
            nid,
            kind,
            *(f"{pages / _PAGES_PER_MIB:.1f}" for pages in (present, present - free, free)),
            *(str(node[stat]) for stat in ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit")),
            *(str(node[stat]) for stat in ("local_node", "other_node")),
            f"{100 * node['accesses'] / total:.1f}",
        ]
    )


def _row(cells: list[str]) -> str:
    parts = []
    for cell, (title, width) in zip(cells, _COLUMNS, strict=True):
        parts.append(cell.ljust(width) if title in ("node", "kind") else cell.rjust(width))
    return " ".join(parts).rstrip()


def _moves(hosts: Mapping[str, Any]) -> list[str]:
    names = list(hosts)
    shown = names[:6]
    lines = ["(* private node)", "", "pages".ljust(30) + "".join(name.rjust(12) for name in shown)]
    for title, events in _MOVES:
        events = (events,) if isinstance(events, str) else events
        counts = [sum(hosts[name]["vmstat"][event] for event in events) for name in shown]
        lines.append(title.ljust(30) + "".join(str(count).rjust(12) for count in counts))
    if len(names) > len(shown):
        lines.append(f"... and {len(names) - len(shown)} more hosts, in summary.json")
    return lines


def _devices(devices: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, device in devices.items():
        if not device["stored_pages"] and not device["pages_stored"]:
            continue
        used, capacity = device["used_bytes"] / 2**20, device["capacity_bytes"] / 2**20
        line = f"device {name} ({device['class']}): {device['stored_pages']} pages in {used:.1f} of {capacity:.1f} MiB"
        if "ratio" in device:
            line += f", ratio {device['ratio']:.2f}, {device['same_filled_pages']} same-filled"
        if device["pooled"]:
            held = ", ".join(
                f"{h.removeprefix('host/')} {p / _PAGES_PER_MIB:.0f} MiB"
                for h, p in device["granted_by_host"].items()
            )
            line += f"; granted: {held or 'nothing'}"
        lines.append(line)
    return lines
