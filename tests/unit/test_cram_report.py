"""What text and plots of a run tell of compressed RAM with a service."""

from __future__ import annotations

from typing import Any

import pytest

from privmem.cluster.results.cram_table import service_lines
from privmem.cluster.results.plots import all_figures
from privmem.cluster.results.series import tables_of
from privmem.scheduler.messages import Sample

EPOCH_NS = 10_000_000
#: Of each epoch: pages that can be used, pages lost since the start, ns in the four states.
EPOCHS = [(2048, 0, (10, 0, 0, 0)), (1024, 3, (2, 3, 4, 1)), (2048, 3, (0, 10, 0, 0))]


def service_of(usable_pages: int, lost_pages: int, state_ms: list[int]) -> dict[str, Any]:
    states = zip(("normal", "pressure", "closed", "refusing"), state_ms, strict=True)
    return {
        "state": 0,
        "shown_pages": 2048,
        "usable_pages": usable_pages,
        "usable_least_pages": 1024,
        "resident_pages": 512,
        "device_used_bytes": 1 << 20,
        "written_in_place_pages": 70,
        "lost_pages": lost_pages,
    } | {f"{name}_ns": ms * 1_000_000 for name, ms in states}


def summary() -> dict[str, Any]:
    node = {"device": "device/open.n1", "service": service_of(2048, 3, [12, 13, 4, 1])}
    node["service"] |= {"generation": "F1", "write_control": False}
    return {
        "virtual_ns": 3 * EPOCH_NS,
        "hosts": {"open": {"nodes": {"0": {"device": "device/open.n0"}, "1": node}}},
    }


def samples() -> list[Sample]:
    found, spent_ms = [], [0, 0, 0, 0]
    for epoch, (usable, lost, ms) in enumerate(EPOCHS):
        spent_ms = [a + b for a, b in zip(spent_ms, ms, strict=True)]
        when = {"epoch": epoch, "time_ns": (epoch + 1) * EPOCH_NS}
        row = when | {"host": "host/open", "nid": 1, "service": "F1"} | service_of(usable, lost, spent_ms)
        found.append(Sample("cram", [row]))
        found.append(Sample("device", [when | {"device": "open.n1", "capacity_bytes": 4 << 20}]))
    return found


@pytest.fixture
def figures() -> dict[str, Any]:
    return {f.title: f for f in all_figures(summary(), tables_of(samples()))[0]}


def traces(figure: Any) -> dict[str, list[float]]:
    assert len(figure.panels) == 1
    return {trace["name"]: trace["y"] for trace in figure.panels[0].traces}


def test_capacity_against_time(figures):
    figure = figures["Capacity of compressed RAM"]
    assert figure.panels[0].title == "open: F1, no write control"
    assert traces(figure) == {
        "physical memory used": [1.0] * 4,
        "usable: perceived capacity": [8.0, 8.0, 4.0, 8.0],
        "pages that are there": [2.0] * 4,
        "shown when nothing is stored": [8.0] * 4,
        "physical memory": [4.0] * 4,
    }


def test_shares_of_the_states_are_of_each_interval(figures):
    assert list(traces(figures["State of the compressed RAM service"]).values()) == [
        [100.0, 100.0, 20.0, 0.0],
        [0.0, 0.0, 30.0, 100.0],
        [0.0, 0.0, 40.0, 0.0],
        [0.0, 0.0, 10.0, 0.0],
    ]


def test_lost_pages_are_counted_from_the_start(figures):
    assert traces(figures["Pages refused after they were accepted"]) == {
        "open: F1, no write control": [0.0, 0.0, 3.0, 3.0]
    }


def test_an_interrupted_run_has_the_plots_without_what_only_its_end_tells():
    figures = all_figures({"hosts": {}, "devices": {}}, tables_of(samples()))[0]
    found = {f.title: f for f in figures}
    assert found["Capacity of compressed RAM"].panels[0].title == "open, node 1"


def test_the_text_has_a_column_for_each_node():
    lines = [line.rsplit(None, 1) for line in service_lines(summary()["hosts"])]
    assert [[label.strip(), value] for label, value in lines] == [
        ["compressed RAM", "open.n1"],
        ["generation of the service", "F1"],
        ["write control", "no"],
        ["MiB shown", "8.00"],
        ["MiB usable at the end", "8.00"],
        ["MiB usable at the least", "4.00"],
        ["ms normal", "12.00"],
        ["ms under pressure", "13.00"],
        ["ms with the gate closed", "4.00"],
        ["ms refusing", "1.00"],
        ["pages written in place", "70"],
        ["pages refused after they were accepted", "3"],
    ]
    assert service_lines({"h0": {"nodes": {"0": {"device": "device/h0.n0"}}}}) == []
