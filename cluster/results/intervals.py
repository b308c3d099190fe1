"""From samples to what a plot shows: counters as rates over intervals, gauges at instants, on one time axis.

A sample says what was true at its time, and counters count from the run's start. Participants that have
nothing to do send no sample, and then nothing of theirs has changed: values are carried forward. A plot of more
than `POINTS_MAX` instants keeps every n-th; rates stay exact, as they come from differences of counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from privmem.cluster.results.series import natural

#: Instants that a plot shows at most: about one a pixel of a panel, and the file stays small.
POINTS_MAX = 500
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Track:
    """The samples of one host, node or device, by time."""

    time_ns: np.ndarray  # int64, ascending
    columns: dict[str, np.ndarray]  # null is 0

    def has(self, column: str) -> bool:
        """Whether anything but zeros was ever sampled."""
        return column in self.columns and bool(self.columns[column].any())

    def at(self, grid: np.ndarray, column: str) -> np.ndarray:
        """Value at each instant; 0 before the first sample, float64."""
        if column not in self.columns:
            return np.zeros(len(grid))
        before = np.searchsorted(self.time_ns, grid, side="right")
        return np.concatenate([[0.0], self.columns[column].astype(np.float64)])[before]

    def delta(self, grid: np.ndarray, column: str) -> np.ndarray:
        """How much a counter grew between neighbouring instants: one value less than instants."""
        return np.diff(self.at(grid, column))

    def rate(self, grid: np.ndarray, column: str) -> np.ndarray:
        """Growth of a counter per second of virtual time."""
        return self.delta(grid, column) * 1e9 / np.diff(grid)


def tracks_of(table: pa.Table, by: tuple[str, ...]) -> dict[Key, Track]:
    """The rows of a table by name; keys in natural order."""
    columns = {name: table.column(name) for name in table.column_names}
    keys = list(zip(*(columns[name].to_pylist() for name in by), strict=True))
    rows: dict[Key, list[int]] = {}
    for at, key in enumerate(keys):
        rows.setdefault(key, []).append(at)
    values = {
        name: np.asarray(column.fill_null(0).to_numpy())
        for name, column in columns.items()
        if not pa.types.is_string(column.type)
    }
    tracks = {}
    for key in sorted(rows, key=lambda key: [natural(part) for part in key]):
        picked = {name: column[rows[key]] for name, column in values.items()}
        order = np.argsort(picked["time_ns"], kind="stable")
        ordered = {name: column[order] for name, column in picked.items()}
        tracks[key] = Track(ordered.pop("time_ns"), ordered)
    return tracks


def grid_of(tables: dict[str, pa.Table]) -> tuple[np.ndarray, int]:
    """(instants from 0 on, n): every n-th time at which anybody was sampled, and the last."""
    times = [table.column("time_ns").to_numpy() for table in tables.values() if table.num_rows]
    if not times:
        return np.zeros(1, dtype=np.int64), 1
    instants = np.unique(np.concatenate([np.zeros(1, dtype=np.int64), *times]))
    step = -(-len(instants) // POINTS_MAX)
    kept = instants[::-1][::step][::-1]
    return np.union1d(kept, instants[:1]), step


def until(grid: np.ndarray, end_ns: int) -> np.ndarray:
    """The instants up to a track's last sample: what has ended is not drawn on."""
    return grid[: int(np.searchsorted(grid, end_ns, side="right"))]


def steps(per_interval: np.ndarray) -> np.ndarray:
    """Values of intervals as values at instants, for a line that jumps at each interval's start."""
    return np.concatenate([per_interval[:1], per_interval])


def held(track: Track, grid: np.ndarray, column: str) -> np.ndarray:
    """A gauge at instants, for the same kind of line: what was true at an interval's end stands for all of it."""
    return steps(track.at(grid[1:], column))
