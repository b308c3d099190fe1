"""Granules: each has one owner, all come back, and damage is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.nodeagent.device._granule_kernel import NIL
from privmem.nodeagent.device.granules import Granules
from privmem.scheduler.errors import InvariantError


def numbers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_chains_have_their_length_and_share_nothing() -> None:
    granules = Granules(10, 64)
    firsts = granules.take(numbers(3, 0, 2))
    chains = [granules.chains(numbers(first)).tolist() for first in firsts.tolist()]
    assert chains == [[1, 2, 3], [], [4, 5]]
    assert (granules.free, granules.used_bytes) == (5, 5 * 64)
    granules.validate(firsts)


def test_what_was_freed_last_is_taken_first() -> None:
    granules = Granules(10, 64)
    first, second = granules.take(numbers(2, 2))
    assert granules.give(numbers(first, NIL, second)) == 4
    assert granules.chains(granules.take(numbers(5))).tolist() == [3, 4, 1, 2, 5]


def test_taking_more_than_is_free_changes_nothing() -> None:
    granules = Granules(4, 64)
    for wanted in (numbers(5), numbers(3, 2), numbers(-1)):
        with pytest.raises(InvariantError, match="4 free"):
            granules.take(wanted)
    assert granules.free == 4
    granules.validate(granules.take(numbers(4)))
    assert granules.free == 0


def test_bytes_are_kept_and_wiped() -> None:
    granules = Granules(10, 64)
    firsts = granules.take(numbers(2, 0, 3))
    lengths = np.array([[100, 0], [0, 0], [1, 128]])
    granules.write(firsts, numbers(128, 0, 192)[:, np.newaxis], b"x" * 320)
    data = bytes(range(229))
    granules.write(firsts, lengths, data)
    assert granules.read(firsts, lengths) == data
    chain = granules.chains(firsts[2:])
    assert granules.chains(firsts).tolist() == [1, 2, 3, 4, 5]
    assert granules.rows(chain).tobytes() == data[100:101] + bytes(63) + data[101:]
    assert granules.read(firsts[:1], numbers(128)[:, np.newaxis]) == data[:100] + bytes(28)
    granules.wipe(firsts[2:])
    assert granules.read(firsts, lengths) == data[:100] + bytes(129)


def test_blocks_longer_than_their_chain_are_refused() -> None:
    granules = Granules(10, 64)
    firsts = granules.take(numbers(1))
    granules.write(firsts, numbers(64)[:, np.newaxis], b"x" * 64)
    for call in (
        lambda: granules.write(firsts, numbers(65)[:, np.newaxis], b"x" * 65),
        lambda: granules.read(firsts, numbers(65)[:, np.newaxis]),
    ):
        with pytest.raises(InvariantError, match="more blocks than its chain"):
            call()


def test_memory_that_is_never_used_costs_nothing() -> None:
    """Four GiB of granules, and a snapshot of what is used."""
    granules = Granules(1 << 26, 64)
    granules.take(numbers(3))
    assert len(granules.snapshot()["next"]) == 4
    assert granules.rows(numbers()).shape == (0, 64)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda g: g._next.__setitem__(2, 1), "used twice"),
        (lambda g: g._next.__setitem__(2, 9), "does not exist"),
        (lambda g: g._state.__setitem__(0, 1), "free twice"),
        (lambda g: g._state.__setitem__(1, 6), "granules held"),
        (lambda g: g._state.__setitem__(0, NIL), "granules held"),
    ],
)
def test_damage_is_seen(damage, match: str) -> None:
    granules = Granules(10, 64)
    firsts = granules.take(numbers(3, 2))
    granules.give(firsts[1:])
    granules.validate(firsts[:1])
    damage(granules)
    with pytest.raises(InvariantError, match=match):
        granules.validate(firsts[:1])


def test_a_chain_that_goes_in_a_circle_is_seen() -> None:
    granules = Granules(10, 64)
    firsts = granules.take(numbers(3))
    granules._next[3] = 1
    with pytest.raises(InvariantError, match="more than the 3 granules"):
        granules.chains(firsts)


@given(st.lists(st.integers(-8, 20), max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_sequence_against_a_list(sizes: list[int]) -> None:
    """Positive: take as many; negative: free the chain that stands there in the list of those held."""
    granules = Granules(64, 16)
    held: list[tuple[int, int]] = []
    for size in sizes:
        if size < 0 and held:
            first, nr = held.pop(-size % len(held))
            assert granules.give(numbers(first)) == nr
        elif 0 < size <= granules.free:
            held.append((int(granules.take(numbers(size))[0]), size))
        copy = Granules(64, 16)
        copy.restore(granules.snapshot())
        granules = copy
    taken = sum(nr for _, nr in held)
    assert (granules.free, granules.used_bytes) == (64 - taken, 16 * taken)
    for first, nr in held:
        assert len(granules.chains(numbers(first))) == nr
    granules.validate(numbers(*(first for first, _ in held)))
