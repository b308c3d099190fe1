"""Extents of a device: worked examples, refusals, planted damage."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

from privmem.nodeagent.device.extents import ExtentAllocator
from privmem.scheduler import plain
from privmem.scheduler.errors import InvariantError


def test_grants_are_rounded_up_aligned_and_from_low_to_high():
    extents = ExtentAllocator(16 * 256, 256)
    grants = [
        extents.grant(host, nr) for host, nr in [("a", 1), ("b", 700), ("a", 256), ("b", 257), ("c", 2048)]
    ]
    assert grants == [(0, 256), (1024, 1024), (256, 256), (512, 512), (2048, 2048)]
    assert extents.extents() == [
        (0, 256, "a"),
        (256, 256, "a"),
        (512, 512, "b"),
        (1024, 1024, "b"),
        (2048, 2048, "c"),
    ]
    assert extents.granted_pages() == {"a": 512, "b": 1536, "c": 2048}
    assert extents.free_pages == 0
    assert extents.grant("a", 1) == -errno.ENOMEM
    extents.validate()


def test_returns_merge():
    extents = ExtentAllocator(8 * 64, 64)
    assert [extents.grant("a", 64) for _ in range(8)] == [(start, 64) for start in range(0, 512, 64)]
    assert extents.grant("b", 64) == -errno.ENOMEM
    for start in (64, 0, 128, 192, 320):
        assert extents.release("a", start, 64) == 0
    assert extents.grant("b", 512) == -errno.ENOMEM
    assert extents.grant("b", 256) == (0, 256)
    assert (extents.free_pages, extents.granted_pages()) == (64, {"a": 192, "b": 256})
    extents.validate()


@pytest.mark.parametrize(
    ("capacity", "unit", "free"),
    [(1000, 256, 768), (257, 256, 256), (100, 100, 100), (7, 1, 7)],
)
def test_any_capacity_is_granted_in_whole_units(capacity: int, unit: int, free: int):
    extents = ExtentAllocator(capacity, unit)
    assert extents.free_pages == free
    starts = [extents.grant("a", unit) for _ in range(free // unit)]
    assert sorted(starts) == [(start, unit) for start in range(0, free, unit)]
    assert extents.grant("a", unit) == -errno.ENOMEM


def test_a_run_larger_than_any_block_is_refused():
    extents = ExtentAllocator(12, 1)
    assert [extents.grant("a", nr) for nr in (1 << 40, 13, 9)] == [-errno.ENOMEM] * 3
    assert extents.grant("a", 5) == (0, 8)


@pytest.mark.parametrize("nr", [0, -1])
def test_a_size_that_is_none(nr: int):
    assert ExtentAllocator(8, 1).grant("a", nr) == -errno.EINVAL


@pytest.mark.parametrize(("capacity", "unit"), [(0, 1), (8, 0), (8, -1), (-8, -16), (8, 16)])
def test_a_device_without_extents(capacity: int, unit: int):
    with pytest.raises(InvariantError, match="make no device"):
        ExtentAllocator(capacity, unit)


@pytest.mark.parametrize("units", [1, 8, 13])
def test_a_dedicated_device_is_one_extent(units: int):
    extents = ExtentAllocator(units * 16, 16)
    before = extents.buddy.free_blocks_by_order()
    assert extents.grant_all("a") == (0, units * 16)
    assert (extents.grant("b", 1), extents.grant_all("b")) == (-errno.ENOMEM, -errno.EBUSY)
    assert [extents.owner_of(0), extents.owner_of(units * 16 - 1)] == ["a", "a"]
    extents.validate()
    assert extents.release("a", 0, units * 16) == 0
    assert extents.buddy.free_blocks_by_order() == before
    extents.validate()


@pytest.mark.parametrize(
    ("host", "start", "nr"),
    [
        ("b", 64, 64),
        ("a", 64, 128),
        ("a", 64, 32),
        ("a", 65, 64),
        ("a", 0, 64),
        ("a", -64, 64),
        ("a", 512, 64),
    ],
)
def test_only_what_was_granted_is_taken_back(host: str, start: int, nr: int):
    extents = ExtentAllocator(512, 64)
    extents.grant("b", 64)
    extents.grant("a", 64)
    before = plain.digest(extents.snapshot())
    assert extents.release(host, start, nr) == -errno.EINVAL
    assert plain.digest(extents.snapshot()) == before
    assert extents.release("a", 64, 64) == 0
    assert extents.release("a", 64, 64) == -errno.EINVAL


def test_whose_page():
    """Seven units: the smallest block that fits is taken first, so the rest of the device is broken last."""
    extents = ExtentAllocator(500, 64)
    assert [extents.grant("a", 64), extents.grant("b", 128)] == [(384, 64), (256, 128)]
    hosts = {page: extents.owner_of(page) for page in (-1, 0, 255, 256, 383, 384, 447, 448, 499, 500)}
    assert hosts == {-1: None, 0: None, 255: None, 256: "b", 383: "b", 384: "a", 447: "a"} | dict.fromkeys(
        (448, 499, 500)
    )


@pytest.mark.parametrize(
    ("host", "pages", "owns"),
    [
        ("a", [], True),
        ("nobody", [], True),
        ("a", [256, 319], True),
        ("a", [256, 320], False),
        ("a", [0], False),
        ("b", [0, 127, 64], True),
        ("b", [0, 256], False),
        ("b", [-1], False),
        ("b", [512], False),
        ("nobody", [400], False),
    ],
)
def test_ownership_of_a_batch(host: str, pages: list[int], owns: bool):
    extents = ExtentAllocator(512, 64)
    assert [extents.grant("b", 128), extents.grant("b", 128), extents.grant("a", 64)] == [
        (0, 128),
        (128, 128),
        (256, 64),
    ]
    assert extents.owns(host, np.array(pages, dtype=np.int32)) == owns


def test_a_restored_allocator_goes_on_alike():
    extents, other = ExtentAllocator(1000, 64), ExtentAllocator(1000, 64)
    other.grant("z", 512)
    for host, nr in [("b", 64), ("a", 128), ("b", 64), ("c", 64)]:
        extents.grant(host, nr)
    extents.release("b", *extents.grant("b", 64))
    other.restore(plain.unpack(*plain.pack(extents.snapshot())))
    other.validate()
    assert plain.digest(other.snapshot()) == plain.digest(extents.snapshot())
    assert (other.granted_pages(), other.extents()) == (extents.granted_pages(), extents.extents())
    assert [other.grant("d", 64) for _ in range(9)] == [extents.grant("d", 64) for _ in range(9)]


def test_equal_states_give_equal_snapshots():
    """Who asked first, or has asked and gone, does not show."""
    one, two = ExtentAllocator(256, 64), ExtentAllocator(256, 64)
    assert (one.grant("a", 128), one.grant("b", 128)) == ((0, 128), (128, 128))
    gone = two.grant("c", 256)
    two.release("c", *gone)
    assert (two.grant("b", 128), two.grant("a", 128)) == ((0, 128), (128, 128))
    two.release("b", 0, 128)
    two.release("a", 128, 128)
    assert (two.grant("a", 128), two.grant("b", 128)) == ((0, 128), (128, 128))
    assert plain.digest(one.snapshot()) == plain.digest(two.snapshot())


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda e: e.held.__setitem__(192, ("a", 64)), "is free in part"),
        (lambda e: e.held.__setitem__(0, ("a", 128)), "overlaps the one before"),
        (lambda e: e.held.__setitem__(0, ("a", 32)), "not made of whole units"),
        (lambda e: e.held.__setitem__(0, ("x", 64)), "held by x, who was granted none"),
        (lambda e: e.held.__setitem__(0, ("b", 64)), "not those that were noted"),
        (lambda e: e.held.__setitem__(512, ("a", 64)), "behind the device"),
        (lambda e: e._owner.__setitem__(7, 0), "not those that were noted"),
        (lambda e: e._granted_pages.__setitem__("a", 0), "not those that were noted"),
        (lambda e: e.buddy.alloc(), "2 extents held, 5 free, of 8"),
        (lambda e: e.buddy.nr_free.__setitem__(0, 3), "longer or shorter than counted"),
    ],
)
def test_damage_is_found(damage: Any, text: str):
    extents = ExtentAllocator(512, 64)
    assert [extents.grant("a", 64), extents.grant("b", 64)] == [(0, 64), (64, 64)]
    extents.validate()
    damage(extents)
    with pytest.raises(InvariantError, match=text):
        extents.validate()
