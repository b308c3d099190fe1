"""`report.html`: one page that opens offline and that a person reads who knows nothing of privmem's insides.

The page brings plotly.js along (the file of the installed package, 5 MB, MIT licence) and loads nothing; its
content security policy forbids it to. What it shows is in `plots.py`, the page around it in `page.html`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import pyarrow as pa
import yaml

from privmem.cluster.progress import rate, span
from privmem.cluster.results.figures import Figure, spec_of
from privmem.cluster.results.plots import Material, all_figures
from privmem.cluster.results.table import MOVES, by_name, device_line, moved, node_rows

_TABLES_MAX = 16  # hosts whose tables are shown
_GLOSSARY = (
    ("host", "one emulated Linux machine"),
    ("node", "a part of the memory of a host, with a distance of its own to each processor"),
    (
        "private node",
        "a node that is closed to ordinary allocations: pages come there only as its features allow",
    ),
    ("device", "what is behind a node: DRAM, CXL memory, compressed RAM, memory across a network"),
    ("pooled device", "a device that several hosts share; it grants them parts of itself, called extents"),
    ("demotion", "moving a page that was not used for a while to slower memory, by the kernel's reclaim"),
    ("promotion", "moving a page that is used or written back to faster memory"),
    ("virtual time", "the time of the emulated world; how long the emulation took does not matter anywhere"),
    (
        "digest",
        "a hash of the final state and all counters: runs of the same identity must have the same one",
    ),
)
_NUMASTAT_TEXT = (
    "<code>numa_hit</code>: pages allocated on the node that was asked for. <code>numa_miss</code>: pages that "
    "ended here though another node was asked for; <code>numa_foreign</code>: pages that were asked for here and "
    "ended elsewhere. <code>local_node</code> and <code>other_node</code>: pages for a process on a processor of "
    "this node, and of another. <code>accesses</code>: share of the host's memory accesses. Pages that were "
    "moved here later count in none of them, as in Linux."
)


def render_report(
    summary: Mapping[str, Any], tables: Mapping[str, pa.Table], config: Mapping[str, Any]
) -> str:
    """The whole page."""
    figures, material = all_figures(summary, tables)
    parts = [
        _warning(summary),
        _cards(summary),
        *(_figure(number, figure, material) for number, figure in enumerate(figures)),
        _hosts(summary),
        _devices(summary),
        _glossary(),
        _folded(summary, config, material),
    ]
    page = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(str(summary.get("name", ""))),
        subtitle=_subtitle(summary),
        body="\n".join(part for part in parts if part),
        plotly=plotly_js(),
    )


@cache
def plotly_js() -> str:
    """The library's source, fit to stand in a page."""
    text = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return text.replace("</script", "<\\/script")


def _subtitle(summary: Mapping[str, Any]) -> str:
    hosts, devices = len(summary.get("hosts", {})), len(summary.get("devices", {}))
    size = f" of {_count(hosts, 'host')} and {_count(devices, 'device')}" if hosts else ""
    digest = summary.get("digest")
    found = f"digest <code>{escape(str(digest))}</code>" if digest else "no digest, as the run did not end"
    return f"privmem run{size}, seed {summary.get('seed')}; {found}"


def _warning(summary: Mapping[str, Any]) -> str:
    if summary.get("status", "complete") == "complete":
        return ""
    at = span(int(summary.get("virtual_ns", 0)))
    return (
        f'<p class="warning">This run was interrupted at {at} of virtual time. What follows is what it had come '
        "to by then; sums at the end and the digest may be missing.</p>"
    )


def _cards(summary: Mapping[str, Any]) -> str:
    hosts, devices = by_name(summary, "hosts"), by_name(summary, "devices")
    accesses = int(summary.get("accesses", 0))
    cards = [
        (span(int(summary.get("virtual_ns", 0))), f"virtual time, in {summary.get('epochs', 0):,} epochs"),
        (f"{rate(accesses)}".strip(), "memory accesses"),
    ]
    processes = [p for host in hosts.values() for p in host.get("processes", {}).values()]
    if accesses and processes:
        alone = sum(p.get("access_ns", 0) for p in processes) / accesses
        faults = sum(p.get("fault_ns", 0) for p in processes) / accesses
        cards.append(
            (f"{alone + faults:,.0f} ns", f"an access on average; {faults:,.0f} ns of it page faults")
        )
    total = {label.strip(): sum(moved(h, events) for h in hosts.values()) for label, events in MOVES}
    if hosts:
        cards += [
            (f"{total['page faults']:,}", "page faults"),
            (
                f"{total['demoted']:,}",
                f"pages demoted; {total['of them to compressed RAM']:,} to compressed RAM, "
                f"{total['of them to a pooled device']:,} to a pooled device",
            ),
            (
                f"{sum(n for label, n in total.items() if label.startswith('promoted')):,}",
                f"pages promoted; {total['promoted by writes to compressed RAM']:,} because they were written",
            ),
        ]
    compressed = [d for d in devices.values() if d.get("class") == "compressed-ram" and d.get("used_bytes")]
    if compressed:
        logical = sum(d.get("logical_bytes", 0) for d in compressed)
        used = sum(d.get("used_bytes", 0) for d in compressed)
        cards.append((f"{logical / used:.2f} to 1", "compression ratio at the end"))
    granted = {name: moved(host, ("extents_granted",)) for name, host in hosts.items()}
    if any(granted.values()):
        by_host = ", ".join(f"{escape(name)} {n:,}" for name, n in list(granted.items())[:4])
        more = ", ..." if len(granted) > 4 else ""
        cards.append((f"{sum(granted.values()):,}", f"extents of pooled memory granted: {by_host}{more}"))
    body = "".join(f'<div class="card"><b>{value}</b><span>{words}</span></div>' for value, words in cards)
    return f'<div class="cards">{body}</div>'


def _figure(number: int, figure: Figure, material: Material) -> str:
    head = f"<h2>{escape(figure.title)}</h2>\n<p>{escape(figure.text)}</p>"
    if not figure.panels:
        return f'{head}\n<p class="empty">{escape(figure.empty)}</p>'
    spec = json.dumps(spec_of(figure, material.axis), separators=(",", ":"), allow_nan=False)
    spec = spec.replace("<", "\\u003c")  # no name in it can end the script, nor begin another
    note = f'\n<p class="quiet">{escape(figure.note)}</p>' if figure.note else ""
    return (
        f'{head}\n<div class="plot" data-spec="spec-{number}" style="height:{figure.height_px}px"></div>'
        f'\n<script type="application/json" id="spec-{number}">{spec}</script>{note}'
    )


def _hosts(summary: Mapping[str, Any]) -> str:
    hosts, devices = by_name(summary, "hosts"), by_name(summary, "devices")
    if not hosts:
        return ""
    parts = ["<h2>Hosts at the end</h2>", f"<p>{_NUMASTAT_TEXT}</p>"]
    for name, host in list(hosts.items())[:_TABLES_MAX]:
        rows = node_rows(host, devices)
        heads = [
            f"{escape(nid)}<br><small>{escape(kind)}{', private' if private else ''}</small>"
            for nid, kind, private in zip(*_heads(rows), strict=True)
        ]
        body = [[f"<code>{escape(label)}</code>", *map(escape, cells)] for label, cells in rows if label]
        parts += [f"<h3>{escape(name)}</h3>", _table(["", *heads], body), _processes(host)]
    if len(hosts) > _TABLES_MAX:
        parts.append(f'<p class="quiet">{len(hosts) - _TABLES_MAX} more hosts are in summary.json.</p>')
    return "\n".join(parts)


def _heads(rows: Sequence[tuple[str, list[str]]]) -> tuple[list[str], list[str], list[str]]:
    """The unlabelled rows: names, classes, and whether private (that row is absent when no node is)."""
    heads = [cells for label, cells in rows if not label]
    empty = [""] * len(heads[0]) if heads else []
    names, kinds, private, *_ = [*heads, empty, empty, empty]
    return names, kinds, private


def _processes(host: Mapping[str, Any]) -> str:
    rows = []
    for name, process in host.get("processes", {}).items():
        accesses = int(process.get("accesses", 0))
        how = "killed" if process.get("killed") else "ended" if process.get("ended") else "still running"
        rows.append(
            [
                escape(name),
                f"{accesses:,}",
                *(f"{process.get(key, 0) / max(accesses, 1):,.1f}" for key in ("access_ns", "fault_ns")),
                span(int(process.get("time_ns", 0))),
                how,
            ]
        )
    heads = ["process", "accesses", "ns an access", "ns in faults an access", "ran until", "at the end"]
    return f"<br>{_table(heads, rows)}" if rows else ""


def _devices(summary: Mapping[str, Any]) -> str:
    lines = [device_line(n, d) for n, d in by_name(summary, "devices").items() if d.get("pages_stored")]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>Devices that store pages, at the end</h2>\n<ul>{items}</ul>"


def _glossary() -> str:
    items = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in _GLOSSARY)
    return f"<h2>Words</h2>\n<dl>{items}</dl>"


def _folded(summary: Mapping[str, Any], config: Mapping[str, Any], material: Material) -> str:
    hosts = by_name(summary, "hosts")
    events = sorted({event for host in hosts.values() for event in host.get("vmstat", {})})
    shown = list(hosts)[:_TABLES_MAX]
    counters = [
        [f"<code>{event}</code>", *(f"{hosts[h].get('vmstat', {}).get(event, 0):,}" for h in shown)]
        for event in map(escape, events)
    ]
    identity = {key: value for key, value in summary.get("identity", {}).items() if key != "config"}
    text = yaml.safe_dump(_plain(config), sort_keys=False)
    every = (
        f"Each plot shows every {material.every}. instant that was sampled. " if material.every > 1 else ""
    )
    parts = [
        _details("All counters", _table(["", *map(escape, shown)], counters) if counters else ""),
        _details("Configuration, with every default", f"<pre>{escape(text)}</pre>"),
        _details(
            "Identity: what the digest depends on, besides the configuration",
            f"<pre>{escape(yaml.safe_dump(_plain(identity)))}</pre>",
        ),
        f'<p class="quiet">{every}The numbers behind the plots are in the Parquet files beside this page.</p>',
    ]
    return "<h2>Details</h2>\n" + "\n".join(parts)


def _plain(value: Any) -> Any:
    """Tuples as lists, which is all that YAML can say."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
