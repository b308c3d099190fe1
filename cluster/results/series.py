"""The time series of a run: samples as Arrow tables, one a kind, and their Parquet files.

Every table has stated columns (`TABLES`, explained in `docs/results.md`); counters that participants add later
become further columns. What a row does not have is null. All numbers are integers but those that a participant
sends as floats. Rows are sorted by time and name, so equal runs give equal tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

_NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
_LRU = ("active_anon", "inactive_anon", "active_file", "inactive_file")

#: Table: the columns that name a row, then those that it has at least.
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "host": (("epoch", "time_ns", "host"), ("accesses", "access_ns", "fault_ns", "pgfault")),
    "host_node": (
        ("epoch", "time_ns", "host", "nid"),
        ("present_pages", "free_pages", *_LRU, "accesses", "reads", "writes", *_NUMASTAT),
    ),
    "device": (
        ("epoch", "time_ns", "device"),
        (
            *("granted_pages", "stored_pages", "same_filled_pages", "logical_bytes", "used_bytes"),
            *("capacity_bytes", "read_bytes", "write_bytes", "read_ns", "write_ns"),
        ),
    ),
    "scheduler": (("epoch", "time_ns", "device", "host"), ("granted_pages", "refused")),
}
#: Tables that only some runs have.
FURTHER_TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cram": (
        ("epoch", "time_ns", "host", "nid"),
        (
            "service",
            "state",
            "shown_pages",
            "usable_pages",
            "resident_pages",
            "room_pages",
            "ratio",
            "lost_pages",
        ),
    ),
}
_NAMES = ("host", "device")


class SampleLike(Protocol):
    """`privmem.scheduler.messages.Sample`, or anything like it."""

    @property
    def table(self) -> str: ...
    @property
    def rows(self) -> list[dict[str, Any]]: ...


def tables_of(samples: Iterable[SampleLike]) -> dict[str, pa.Table]:
    """All tables, the empty ones too. Tables that nobody stated come after the others."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for sample in samples:
        rows.setdefault(sample.table, []).extend(sample.rows)
    stated = [(name, rows.pop(name)) for name in TABLES]
    return {name: _table(name, part) for name, part in [*stated, *sorted(rows.items())]}


def short_name(address: str) -> str:
    """A host or device as the configuration names it: without the `host/` or `device/` of its address."""
    return address.removeprefix("host/").removeprefix("device/")


def natural(name: object) -> list[tuple[int, str]]:
    """Sort key by which h2 comes before h10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", str(name))]


def write_table(table: pa.Table, path: Path) -> None:
    """A Parquet file whose bytes depend on the rows and the version of Arrow alone."""
    pq.write_table(table, path, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """Inverse of `write_table`."""
    return pq.read_table(path)


def _table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    keys, least = (TABLES | FURTHER_TABLES).get(name, (("epoch", "time_ns"), ()))
    further = sorted({column for row in rows for column in row} - {*keys, *least})
    table = pa.table({column: _column(column, rows) for column in [*keys, *least, *further]})
    return table.sort_by([(key, "ascending") for key in keys if key != "epoch"])


def _column(name: str, rows: list[dict[str, Any]]) -> pa.Array:
    values = [row.get(name) for row in rows]
    if name in _NAMES:
        return pa.array([None if v is None else short_name(v) for v in values], type=pa.string())
    present = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in present):
        return pa.array([None if v is None else str(v) for v in values], type=pa.string())
    kind = pa.float64() if any(isinstance(value, float) for value in present) else pa.int64()
    return pa.array(values, type=kind)
