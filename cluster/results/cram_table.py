"""The part of a run's text that tells of compressed RAM whose device reports to a service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from privmem.cluster.results.series import short_name

_PAGES_PER_MIB = 256
_LABEL, _CELL, _WIDTH = 37, 12, 100

Service = Mapping[str, Any]


def _mib(column: str) -> Callable[[Service], str]:
    return lambda service: f"{service[column] / _PAGES_PER_MIB:.2f}"


def _ms(state: str) -> Callable[[Service], str]:
    return lambda service: f"{service[f'{state}_ns'] / 1e6:.2f}"


def _number(column: str) -> Callable[[Service], str]:
    return lambda service: str(service[column])


ROWS: tuple[tuple[str, Callable[[Service], str]], ...] = (
    ("generation of the service", _number("generation")),
    ("write control", lambda service: "yes" if service["write_control"] else "no"),
    ("MiB shown", _mib("shown_pages")),
    ("MiB usable at the end", _mib("usable_pages")),
    ("MiB usable at the least", _mib("usable_least_pages")),
    ("ms normal", _ms("normal")),
    ("ms under pressure", _ms("pressure")),
    ("ms with the gate closed", _ms("closed")),
    ("ms refusing", _ms("refusing")),
    ("pages written in place", _number("written_in_place_pages")),
    ("pages refused after they were accepted", _number("lost_pages")),
)


def service_lines(hosts: Mapping[str, Any]) -> list[str]:
    """A column for each compressed node with a service, by the name of its device; no line without any."""
    found = {
        short_name(str(node["device"])): node["service"]
        for host in hosts.values()
        for node in host.get("nodes", {}).values()
        if node.get("service")
    }
    names = list(found)[: (_WIDTH - _LABEL) // _CELL]
    if not names:
        return []
    lines = [_line("compressed RAM", names)]
    lines += [_line(label, [cell(found[name]) for name in names]) for label, cell in ROWS]
    if len(names) < len(found):
        lines.append(f"and {len(found) - len(names)} more, in summary.json")
    return lines


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:<{_LABEL + 1}}" + "".join(f" {cell[-_CELL + 1 :]:>{_CELL - 1}}" for cell in cells)
