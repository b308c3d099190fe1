"""Rates and gauges for plots, from samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.cluster.results import intervals
from privmem.cluster.results.intervals import grid_of, held, steps, tracks_of, until
from privmem.cluster.results.series import tables_of
from privmem.scheduler.messages import Sample


def device_rows(*rows: tuple[str, int, int]) -> list[Sample]:
    return [
        Sample("device", [{"epoch": 0, "time_ns": at, "device": name, "read_bytes": count}])
        for name, at, count in rows
    ]


def test_tracks_by_name_in_natural_order() -> None:
    tables = tables_of(device_rows(("d10", 5, 1), ("d2", 5, 2), ("d2", 9, 3)))
    tracks = tracks_of(tables["device"], ("device",))
    assert list(tracks) == [("d2",), ("d10",)]
    assert tracks[("d2",)].time_ns.tolist() == [5, 9]
    assert tracks[("d2",)].columns["read_bytes"].tolist() == [2, 3]
    assert tracks[("d2",)].has("read_bytes")
    assert not tracks[("d2",)].has("write_bytes")
    assert not tracks[("d2",)].has("unknown")


def test_values_are_carried_forward() -> None:
    """A device that sends no sample did nothing."""
    track = tracks_of(tables_of(device_rows(("d", 10, 3), ("d", 30, 8)))["device"], ("device",))[("d",)]
    grid = np.array([0, 10, 20, 30, 40])
    assert track.at(grid, "read_bytes").tolist() == [0, 3, 3, 8, 8]
    assert track.delta(grid, "read_bytes").tolist() == [3, 0, 5, 0]
    assert track.rate(grid, "read_bytes").tolist() == [3e8, 0, 5e8, 0]
    assert held(track, grid, "read_bytes").tolist() == [3, 3, 3, 8, 8]
    assert track.at(grid, "unknown").tolist() == [0, 0, 0, 0, 0]


def test_the_grid_starts_at_0_and_has_every_time() -> None:
    tables = tables_of([*device_rows(("d", 10, 1), ("e", 30, 1)), *_host_rows(20)])
    grid, every = grid_of(tables)
    assert (grid.tolist(), every) == ([0, 10, 20, 30], 1)
    assert until(grid, 20).tolist() == [0, 10, 20]
    empty, every = grid_of(tables_of([]))
    assert (empty.tolist(), every) == ([0], 1)


def _host_rows(*times_ns: int) -> list[Sample]:
    return [Sample("host", [{"epoch": 0, "time_ns": at, "host": "host/h"}]) for at in times_ns]


@pytest.mark.parametrize(("nr_times", "every"), [(9, 1), (10, 2), (100, 11)])
def test_many_instants_are_thinned(monkeypatch: pytest.MonkeyPatch, nr_times: int, every: int) -> None:
    monkeypatch.setattr(intervals, "POINTS_MAX", 10)
    grid, found = grid_of(tables_of(_host_rows(*range(1, nr_times + 1))))
    assert found == every
    assert grid[0] == 0
    assert grid[-1] == nr_times
    assert len(grid) <= 11
    assert set(np.diff(grid)[1:].tolist()) <= {every}


@given(
    counts=st.lists(st.integers(0, 1000), min_size=1, max_size=30),
    kept=st.sets(st.integers(1, 30), max_size=10),
)
def test_rates_of_any_grid_add_up_to_the_counter(counts: list[int], kept: set[int]) -> None:
    total = np.cumsum(counts).tolist()
    rows = device_rows(*(("d", at + 1, count) for at, count in enumerate(total)))
    track = tracks_of(tables_of(rows)["device"], ("device",))[("d",)]
    grid = np.array(sorted({0, len(counts), *(at for at in kept if at <= len(counts))}))
    spans_s = np.diff(grid) / 1e9
    assert float((track.rate(grid, "read_bytes") * spans_s).sum()) == pytest.approx(total[-1])


def test_steps_hold_a_value_through_its_interval() -> None:
    assert steps(np.array([5.0, 7.0])).tolist() == [5, 5, 7]
    assert steps(np.array([])).tolist() == []
