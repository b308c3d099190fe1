"""Time series of a run as Parquet: one file a table, from the samples that participants sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from privmem.scheduler.messages import Sample

#: Tables that a run can have; a file is written for each, with no rows if nobody sent any.
TABLES = ("host", "host_node", "device", "scheduler")
_KEYS = ("epoch", "time_ns", "host", "nid", "device")


def tables_of(samples: Iterable[Sample]) -> dict[str, pa.Table]:
    """All tables, rows sorted by epoch and name. Numbers are int64, names are strings; a missing number is null."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for sample in samples:
        rows.setdefault(sample.table, []).extend(sample.rows)
    return {name: _table(found) for name, found in rows.items()}


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    names = sorted({name for row in rows for name in row})
    ordered = [key for key in _KEYS if key in names] + [name for name in names if name not in _KEYS]
    rows = sorted(rows, key=lambda row: tuple((row[k] is None, row[k]) for k in _KEYS if k in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in ordered})


def _column(values: list[Any]) -> pa.Array:
    text = any(isinstance(value, str) for value in values)
    return pa.array(values, type=pa.string() if text else pa.int64())
