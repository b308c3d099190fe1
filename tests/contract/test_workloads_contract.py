"""What every kind of access stream promises to the hosts that consume it. A new kind needs a spec in SPECS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.cluster.errors import ProtocolError
from privmem.cluster.workloads import WORKLOADS, open_stream
from privmem.cluster.workloads.streams import Stream
from privmem.scheduler import plain

NR_PAGES, ACCESSES = 101, 1000
_DRAWN = {"nr_pages": NR_PAGES, "accesses": ACCESSES, "write_permille": 300, "seed": 5}
SPECS: dict[str, dict[str, Any]] = {
    "zipf": _DRAWN | {"theta_permille": 990},
    "uniform": _DRAWN,
    "scan": _DRAWN | {"stride_pages": 7},
    "hotset": _DRAWN
    | {"hot_pages": 10, "hot_access_permille": 900, "period_accesses": 130, "move_pages": 33},
    "gpu": {"nr_pages": NR_PAGES, "buffer_pages": 90, "window_pages": 15, "dma_pages": 11, "launches": 10}
    | {"launch_accesses": 70, "write_permille": 300, "seed": 5},
    "messages": {
        "nr_pages": NR_PAGES,
        "messages": 125,
        "message_accesses": 8,
        "write_permille": 300,
        "seed": 5,
    },
    "replay": {"nr_pages": NR_PAGES, "accesses": "recorded", "repeat": 4, "start": 12},
}
RESOURCES = {"recorded": (np.arange(253, dtype=np.uint32) * 37 % NR_PAGES) << 1 | np.arange(253) % 3 // 2}
RESOURCES["recorded"] = RESOURCES["recorded"].astype(np.uint32)
KINDS = sorted(SPECS)


def stream_of(kind: str, **changes: Any) -> Stream:
    return open_stream({"kind": kind} | SPECS[kind] | changes, RESOURCES)


def take(stream: Stream, count: int) -> list[int]:
    out = np.zeros(count, dtype=np.uint32)
    return out[: stream.fill(out)].tolist()


def test_every_kind_is_here() -> None:
    assert sorted(WORKLOADS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_has_all_its_accesses_and_ends(kind: str) -> None:
    stream = stream_of(kind)
    assert stream.nr_pages == NR_PAGES
    accesses = take(stream, 2 * ACCESSES)
    assert len(accesses) == ACCESSES
    assert 0 <= min(accesses) >> 1 <= max(accesses) >> 1 < NR_PAGES
    assert {access & 1 for access in accesses} == {0, 1}
    assert take(stream, 10) == []
    assert take(stream, 10) == []


@pytest.mark.parametrize("kind", KINDS)
@given(pieces=st.lists(st.integers(0, 400), max_size=20))
def test_the_size_of_the_pieces_does_not_matter(kind: str, pieces: list[int]) -> None:
    whole = take(stream_of(kind), ACCESSES)
    stream = stream_of(kind)
    assert [access for piece in [*pieces, ACCESSES] for access in take(stream, piece)] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_goes_on_where_it_was_taken(kind: str) -> None:
    whole = take(stream_of(kind), ACCESSES)
    first = stream_of(kind)
    take(first, 357)
    snapshot = plain.unpack(*plain.pack(first.snapshot()))
    take(first, 100)
    assert first.snapshot() != snapshot
    second = stream_of(kind)
    second.restore(snapshot)
    assert second.snapshot() == snapshot
    assert take(second, ACCESSES) == whole[357:]
    first.restore(snapshot)
    assert take(first, ACCESSES) == whole[357:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_of_another_stream_is_refused(kind: str) -> None:
    with pytest.raises(ProtocolError, match="cannot go on from 1001"):
        stream_of(kind).restore(stream_of(kind).snapshot() | {"given": ACCESSES + 1})


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_beyond_the_given_accesses_is_left_alone(kind: str) -> None:
    stream = stream_of(kind)
    take(stream, ACCESSES - 3)
    out = np.full(8, 77, dtype=np.uint32)
    assert stream.fill(out) == 3
    assert out[3:].tolist() == [77] * 5


#: What says how long a stream is.
LENGTHS = {"gpu": "launches", "messages": "messages"}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"replay"}))
def test_seeds_and_shares(kind: str) -> None:
    assert take(stream_of(kind), 200) == take(stream_of(kind), 200)
    assert take(stream_of(kind), 200) != take(stream_of(kind, seed=6), 200)
    assert take(stream_of(kind, **{LENGTHS.get(kind, "accesses"): 0}), 10) == []


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"replay", "gpu"}))
def test_shares_of_writes(kind: str) -> None:
    for share, bits in ((0, {0}), (1000, {1})):
        assert {access & 1 for access in take(stream_of(kind, write_permille=share), ACCESSES)} == bits


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"replay"}))
def test_a_single_page(kind: str) -> None:
    own = {"hotset": {"hot_pages": 1}, "gpu": {"buffer_pages": 1, "window_pages": 1, "dma_pages": 0}}
    changes = {"nr_pages": 1} | own.get(kind, {})
    assert {access >> 1 for access in take(stream_of(kind, **changes), 100)} == {0}


def test_a_launch_writes_its_part_works_on_it_and_reads_it() -> None:
    accesses = take(stream_of("gpu"), ACCESSES)
    period = 15 + 70 + 15
    for launch in range(10):
        first = launch % 6 * 15
        part = range(first, first + 15)
        filled = accesses[launch * period : launch * period + 15]
        worked = accesses[launch * period + 15 : launch * period + 85]
        read = accesses[launch * period + 85 : (launch + 1) * period]
        assert filled == [page << 1 | 1 for page in part]
        assert read == [page << 1 for page in part]
        assert {access >> 1 for access in worked} <= set(part)
        assert len(set(worked)) > 15
