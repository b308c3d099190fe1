"""privmem audit CONFIG --load: the matrix on a machine that is at work, beside the idle one."""

from __future__ import annotations

from privmem.cluster.audit.under_load import LoadedAudit, LoadedCell
from privmem.scheduler.isolation import get_design

#: Marks of a cell that is not as on the idle machine: it leaks though that does not; it leaks more, or less; it
#: leaks as an idle machine does whose ordinary memory is full.
OPENED, MORE, FEWER, FULL = "!", ">", "<", "="


def print_under_load(audits: list[LoadedAudit]) -> None:
    """The matrix, where it differs from the idle machine's, and what the run itself did."""
    _print_matrix(audits)
    _print_differences(audits)
    _print_watched(audits)


def _labels(audits: list[LoadedAudit]) -> list[str]:
    """Designs, named as the version that each models."""
    return [get_design(audit.design).label for audit in audits]


def _print_matrix(audits: list[LoadedAudit]) -> None:
    """Activities by designs: pages that landed on a private node, left one or were worked on, uninvited."""
    names = [cell.loaded.activity for cell in audits[0].cells]
    rows = [
        [name, *(f"{a.cells[n].loaded.short(a.letters)} {_mark(a.cells[n])}".rstrip() for a in audits)]
        for n, name in enumerate(names)
    ]
    _print_table([["", *_labels(audits)], *rows])
    print("\nclasses: " + ", ".join(f"{letter} {kind}" for kind, letter in audits[0].letters.items()))
    print("designs: " + ", ".join(f"{get_design(a.design).label} {a.design}" for a in audits))


def _mark(cell: LoadedCell) -> str:
    if cell.opened:
        return OPENED
    if cell.full:
        return FULL
    return MORE if cell.more else FEWER if cell.fewer else ""


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _print_differences(audits: list[LoadedAudit]) -> None:
    cells = [(audit, cell) for audit in audits for cell in audit.cells]
    other = [(audit, cell) for audit, cell in cells if _mark(cell)]
    opened = sum(cell.opened for _, cell in cells)
    crowded_out = sum(bool(cell.loaded.not_run) for _, cell in cells)
    alike = len(cells) - len(other) - crowded_out
    print(f"\n{alike} of {len(cells)} cells leak as on the idle machine, {opened} only under load", end="")
    print(f"; {crowded_out} had no room to run" if crowded_out else "")
    for audit, cell in other:
        idle, loaded = cell.idle.short(audit.letters), cell.loaded.short(audit.letters)
        full = f"; idle, but ordinary memory full: {cell.full.short(audit.letters)}" if cell.full else ""
        label = get_design(audit.design).label
        print(f"{_mark(cell)} {cell.loaded.activity}, {label}: {loaded}; idle: {idle}{full}")
    crowded = sorted({kind for _, cell in cells for kind in cell.crowded})
    if crowded:
        print(f"left out of some rows, as they had no room or cannot be unplugged: {', '.join(crowded)}")


def _print_watched(audits: list[LoadedAudit]) -> None:
    """What the workloads and the kernel's threads put onto private nodes in the course of the run."""
    print("\npages that the run itself put onto private nodes (invited / uninvited / moved off uninvited)")
    kinds = sorted({(row.nid, row.reason) for audit in audits for row in audit.seen})
    table = [["node, reason", *_labels(audits)]]
    for nid, reason in kinds:
        cells = []
        for audit in audits:
            rows = [row for row in audit.seen if (row.nid, row.reason) == (nid, reason)]
            counts = (sum(getattr(row, name) for row in rows) for name in ("invited", "uninvited", "left"))
            cells.append(" / ".join(str(count) for count in counts))
        table.append([f"{nid}, {reason}", *cells])
    for title, name in (
        ("leaks by the design's own word", "pgleak"),
        ("killed for want of memory", "killed"),
        ("epochs with all pages accounted for", "epochs"),
        ("the same after activities", "after"),
    ):
        table.append([title, *(str(getattr(audit, name)) for audit in audits)])
    _print_table(table)
