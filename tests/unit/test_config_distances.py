"""The distance matrix from `via` and `hop`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.cluster.config.distances import distance_matrix, via_order
from privmem.cluster.config.models import HostConfig


def host(*nodes: dict[str, Any], **more: Any) -> HostConfig:
    return HostConfig.model_validate({"name": "h", "cpus": 1, "nodes": nodes, **more})


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (({"id": 0},), ((10,),)),
        # nothing said: REMOTE_DISTANCE
        (({"id": 0}, {"id": 1}), ((10, 20), (20, 10))),
        # the brief example: an expander, one behind it, a pool beside it
        (
            (
                {"id": 0},
                {"id": 1, "via": 0, "hop": 14},
                {"id": 2, "via": 1, "hop": 10},
                {"id": 3, "via": 0, "hop": 60},
            ),
            ((10, 24, 34, 70), (24, 10, 20, 84), (34, 20, 10, 94), (70, 84, 94, 10)),
        ),
        # two sockets, each with an expander; listed in no order
        (
            ({"id": 3, "via": 1, "hop": 5}, {"id": 1}, {"id": 2, "via": 0, "hop": 7}, {"id": 0}),
            ((10, 15, 32, 25), (15, 10, 27, 20), (32, 27, 10, 17), (25, 20, 17, 10)),
        ),
    ],
)
def test_matrix(nodes: tuple[dict[str, Any], ...], expected: tuple[tuple[int, ...], ...]) -> None:
    assert distance_matrix(host(*nodes)) == expected


def test_a_given_matrix_is_taken_as_it_is() -> None:
    given_matrix = ((10, 30), (40, 10))
    assert distance_matrix(host({"id": 5}, {"id": 2}, distances=given_matrix)) == given_matrix


def test_nodes_on_a_circle_and_behind_it_are_left_out() -> None:
    ring = [{"id": 1, "via": 2}, {"id": 2, "via": 1}, {"id": 3, "via": 2}]
    assert via_order(host({"id": 0}, *ring, {"id": 4, "via": 9}).nodes) == [0]


@st.composite
def trees(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Nodes in any order, each reached through one of a smaller number, ids drawn without order."""
    ids = draw(st.lists(st.integers(0, 63), min_size=1, max_size=8, unique=True))
    nodes: list[dict[str, Any]] = [{"id": ids[0]}]
    for n in range(1, len(ids)):
        via = draw(st.sampled_from(ids[:n]))
        nodes.append({"id": ids[n], "via": via, "hop": draw(st.integers(1, 30))})
    return draw(st.permutations(nodes))


@settings(max_examples=60, deadline=None)
@given(trees())
def test_distances_are_the_hops_on_the_way(nodes: list[dict[str, Any]]) -> None:
    """Against the definition: 10 and the hops between the two nodes up to where their ways meet."""
    by_id = {node["id"]: node for node in nodes}

    def way(nid: int) -> list[int]:
        via = by_id[nid].get("via")
        return [nid] if via is None else [nid, *way(via)]

    ids = list(by_id)
    expected = []
    for a in ids:
        row = []
        for b in ids:
            apart = set(way(a)) ^ set(way(b))
            row.append(10 + sum(by_id[nid]["hop"] for nid in apart))
        expected.append(tuple(row))
    assert distance_matrix(host(*nodes)) == tuple(expected)
