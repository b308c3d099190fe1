"""privmem audit CONFIG: what ordinary activity does to private nodes, by isolation design."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from privmem.cluster.audit import AuditMachine, Cell, audit, letters_of, machine_of
from privmem.cluster.audit.catalogue import ACTIVITIES
from privmem.cluster.audit.under_load import audit_under_load
from privmem.cluster.cli import add_plugin_argument
from privmem.cluster.cli.audit_load import print_under_load
from privmem.cluster.config import load_config
from privmem.cluster.config.tree import Unreadable, read_yaml
from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus.machine import Reader
from privmem.scheduler.isolation import get_design, select_designs

_LEGEND_WIDTH = 99


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", help="a configuration (its first host), or a machine of litmus tests"
    )
    parser.add_argument(
        "--design", default="all", metavar="NAMES", help="designs with commas between; all; every"
    )
    parser.add_argument(
        "-k", dest="text", default="", metavar="TEXT", help="only activities whose name holds this"
    )
    parser.add_argument(
        "--open", default="", metavar="TEXT", help="print the trip of a leaked page of these activities"
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")
    parser.add_argument(
        "--load", action="store_true", help="audit the configuration's run in its midst, and compare"
    )
    add_plugin_argument(parser)


def run(args: argparse.Namespace) -> int:
    """0; leaks are findings, not failures. With --load 1 where a cell leaks that does not on the idle machine."""
    try:
        designs = [design.name for design in select_designs(args.design)]
    except KeyError as error:
        raise ConfigError(f"--design: {error.args[0]}") from None
    if args.load:
        return _run_under_load(args, designs)
    machine = machine_of_file(Path(args.config), args.plugins)
    cells = audit(machine, designs, args.text or args.open)
    if not cells:
        raise ConfigError(f"no activity's name holds {args.text or args.open!r}")
    if args.json:
        json.dump([cell.plain() for cell in cells], sys.stdout, indent=2)
        print()
    elif args.open:
        _print_trips(cells)
    else:
        print(matrix_text(cells, designs, letters_of(machine)))
    return 0


def _run_under_load(args: argparse.Namespace, designs: list[str]) -> int:
    only = args.text or args.open
    if not any(only in activity.name for activity in ACTIVITIES):
        raise ConfigError(f"no activity's name holds {only!r}")
    audits = audit_under_load(
        lambda design: load_config(args.config, design=design, plugins=args.plugins), designs, only
    )
    if args.json:
        json.dump([each.plain() for each in audits], sys.stdout, indent=2)
        print()
    elif args.open:
        _print_trips([cell.loaded for each in audits for cell in each.cells])
    else:
        print_under_load(audits)
    return int(any(cell.opened for each in audits for cell in each.cells))


def machine_of_file(path: Path, plugins: list[Path]) -> AuditMachine:
    """The first host of a configuration, or a litmus machine (a mapping with `nodes`)."""
    try:
        text = path.read_text(encoding="utf-8")
        tree, _ = read_yaml(text)
    except (OSError, UnicodeDecodeError, Unreadable):
        tree = None
    if tree is None or not isinstance(tree.value, dict) or "nodes" not in tree.value:
        return machine_of(load_config(path, plugins=plugins))
    reader = Reader()
    machine = reader.read(tree)
    if machine is None:
        raise ConfigError("\n".join(f"{path}:{p.line}: {p.path}: {p.text}" for p in reader.problems))
    audited = AuditMachine(tuple(machine.nodes.values()), machine.distances)
    if not audited.private or len(audited.public) < 2:
        raise ConfigError(
            f"{path}: found too few nodes; allowed: two general nodes and a private one, at least"
        )
    return audited


def matrix_text(cells: list[Cell], designs: list[str], letters: Mapping[str, str]) -> str:
    """Activities by designs: pages that landed on a private node, left one, or were worked on there, without
    being invited. One column a design, under the name of its version; a letter a device class.
    """
    labels = {name: get_design(name).label for name in designs}
    rows: dict[str, dict[str, str]] = {"": labels}
    for cell in cells:
        rows.setdefault(cell.activity, {})[cell.design] = cell.short(letters)
    rows["pages in all"] = {d: str(sum(c.leaks for c in cells if c.design == d)) for d in designs}
    first = max(len(name) for name in rows)
    widths = {d: max(len(row[d]) for row in rows.values()) for d in designs}
    lines = [
        "  ".join((name.ljust(first), *(row[d].ljust(widths[d]) for d in designs)))
        for name, row in rows.items()
    ]
    legend = [
        "pages, uninvited: +N landed on private nodes of these classes, -N left them, ~N worked on in place",
        "classes: " + ", ".join(f"{letter} {kind}" for kind, letter in letters.items()),
        *textwrap.wrap(
            "designs: " + ", ".join(f"{label} {name}" for name, label in labels.items()),
            _LEGEND_WIDTH,
            break_on_hyphens=False,
        ),
    ]
    return "\n".join(line.rstrip() for line in (*lines, "", *legend))


def _print_trips(cells: list[Cell]) -> None:
    for cell in cells:
        print(f"{cell.activity} [{cell.design}]: {cell.text()}")
        if cell.not_run:
            print(f"  not run: {cell.not_run}")
        if cell.notes:
            print(f"  answers: {', '.join(cell.notes)}")
        if cell.services:
            done = ", ".join(f"{count} {service}" for service, count in cell.services.items())
            print(f"  in place: {done}")
        for line in cell.trip:
            print(f"  {line}")
