"""The content store: bytes come back, memory is wiped, counts and damage are seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privmem.nodeagent.content import LITERAL, ContentTable
from privmem.nodeagent.device.backing import PageStore
from privmem.nodeagent.device.compression import CompressionEngine
from privmem.scheduler import plain
from privmem.scheduler.errors import InvariantError, ProtocolError

GENERATOR = {"kind": "generator", "seed": 1, "zero_permille": 0, "random_bytes": 900, "changed_bytes": 64}
CONTENT = ContentTable([GENERATOR], {})
RANDOM = np.frombuffer(np.random.default_rng(3).bytes(4096), dtype=np.uint8)
TEXT = np.tile(np.arange(32, 128, dtype=np.uint8), 43)[:4096]
SAME = np.full(4096, 7, dtype=np.uint8)
EMPTY = np.zeros((0, 4096), dtype=np.uint8)


def make(codec: str | None = "lz4", pages: int = 16, physical: int = 16, **more: Any) -> PageStore:
    spec = {"codec": codec, "level": None, "block": more.pop("block", 4096), "granule": 64}
    return PageStore(pages, physical * 4096, CONTENT, CompressionEngine(spec) if codec else None, **more)


def put(store: PageStore, dpa: list[int], *literal: np.ndarray, source: int | None = None) -> None:
    """Literal pages, or described ones with the page number as index."""
    nr = len(dpa)
    where = np.array(dpa, dtype=np.int32)
    kind = np.full(nr, LITERAL if source is None else source, np.uint16)
    bodies = np.stack(literal) if literal else EMPTY
    store.store(where, kind, where.astype(np.uint32), np.full(nr, 2, np.uint16), bodies)


def at(*dpa: int) -> np.ndarray:
    return np.array(dpa, dtype=np.int32)


@pytest.mark.parametrize("codec", [None, "lz4", "zstd", "none"])
@pytest.mark.parametrize("block", [1024, 4096])
def test_literal_bytes_come_back(codec: str | None, block: int) -> None:
    store = make(codec, block=block)
    put(store, [3, 0, 9], RANDOM, TEXT, SAME)
    source, _, _, literal = store.load(at(9, 3, 0))
    assert source.tolist() == [LITERAL] * 3
    assert literal.tolist() == [SAME.tolist(), RANDOM.tolist(), TEXT.tolist()]
    assert store.page_bytes(0).tobytes() == TEXT.tobytes()
    store.validate()


@pytest.mark.parametrize("codec", [None, "lz4"])
@pytest.mark.parametrize("keep_bytes", [False, True])
def test_described_pages_come_back_as_descriptions(codec: str | None, keep_bytes: bool) -> None:
    store = make(codec, keep_bytes=keep_bytes)
    put(store, [5, 2], source=1)
    source, index, version, literal = store.load(at(2, 5))
    assert (source.tolist(), index.tolist(), version.tolist()) == ([1, 1], [2, 5], [2, 2])
    assert literal.shape == (0, 4096)
    assert store.page_bytes(5).tobytes() == bytes(CONTENT.page_bytes(1, 5, 2))
    store.validate()


def test_counts_of_what_is_stored() -> None:
    store = make()
    put(store, [0, 1, 2], RANDOM, SAME, TEXT)
    put(store, [3, 4], source=1)
    size = store.stored_bytes
    assert (store.stored_pages, store.same_filled_pages, store.incompressible_pages) == (5, 1, 1)
    assert 4096 + 3 * 100 < size < 4096 + 3 * 1300
    assert store.used_bytes % 64 == 0 and size <= store.used_bytes < size + 4 * 64
    assert store.room_pages == (16 * 4096 - store.used_bytes) // 4096
    store.free(at(0, 1, 2, 3, 4))
    assert (store.stored_pages, store.same_filled_pages, store.incompressible_pages) == (0, 0, 0)
    assert (store.stored_bytes, store.used_bytes, store.room_pages) == (0, 0, 16)
    store.validate()


def test_a_kept_description_takes_the_same_memory() -> None:
    one, other = make(), make(keep_bytes=True)
    for store in (one, other):
        put(store, [1, 2, 3], source=1)
    assert one.used_bytes == other.used_bytes > 0
    assert one.engine and other.engine and one.engine.counts == other.engine.counts


@pytest.mark.parametrize("codec", [None, "lz4"])
def test_bytes_of_kept_descriptions_are_real(codec: str | None) -> None:
    """They are read back from memory, checked, and wiped; a store without `keep_bytes` has none."""
    bare, store = make(codec), make(codec, keep_bytes=True)
    for one in (bare, store):
        put(one, [1, 2], source=1)
    assert (len(bare.snapshot()["kept"]), len(store.snapshot()["kept"][0])) == (0, 2)
    store._of_kept().crc[1] ^= np.uint32(1)
    with pytest.raises(InvariantError, match="page 1 does not read back"):
        store.load(at(1))


@pytest.mark.parametrize("codec", [None, "lz4"])
def test_what_is_overwritten_is_gone(codec: str | None) -> None:
    store = make(codec)
    put(store, [1], RANDOM)
    put(store, [1], SAME)
    assert (store.stored_pages, store.used_bytes) == (1, 0 if codec else 4096)
    put(store, [1, 2, 1], TEXT, RANDOM, TEXT[::-1].copy())
    assert store.page_bytes(1).tobytes() == TEXT[::-1].tobytes()
    assert store.stored_pages == 2
    store.validate()


def test_a_batch_with_a_page_twice_takes_the_right_bytes() -> None:
    store = make()
    where = at(1, 2, 1, 3)
    kind = np.array([LITERAL, 1, 1, LITERAL], np.uint16)
    store.store(where, kind, where.astype(np.uint32), np.zeros(4, np.uint16), np.stack([RANDOM, TEXT]))
    assert store.page_bytes(1).tobytes() == bytes(CONTENT.page_bytes(1, 1, 0))
    assert store.page_bytes(3).tobytes() == TEXT.tobytes()
    assert store.stored_pages == 3


def test_freed_memory_is_wiped() -> None:
    store = make()
    put(store, [1], TEXT)
    assert store._granules is not None
    chain = store._granules.chains(store._first[1:2])
    assert store._granules.rows(chain).any()
    store.free(at(1))
    assert not store._granules.rows(chain).any()
    store.validate()


def test_more_than_surely_fits_is_refused() -> None:
    store = make(pages=16, physical=2)
    put(store, [0], TEXT)
    with pytest.raises(InvariantError, match="2 pages to store, but only 1 surely fit"):
        put(store, [1, 2], SAME, SAME)
    put(store, [1], RANDOM)
    assert store.room_pages == 0
    plain_store = make(None, pages=16, physical=2)
    put(plain_store, [0, 1], SAME, SAME)
    with pytest.raises(InvariantError, match="0 surely fit"):
        put(plain_store, [2], SAME)


@pytest.mark.parametrize("codec", [None, "lz4"])
def test_rows_that_make_no_sense_are_refused(codec: str | None) -> None:
    store = make(codec)
    for call, match in (
        (lambda: put(store, [16], SAME), "not all of a device of 16"),
        (lambda: put(store, [-1], SAME), "not all of a device of 16"),
        (lambda: put(store, [1, 2], SAME), "2 literal pages came with"),
        (lambda: put(store, [1], SAME, source=1), "0 literal pages came with"),
        (lambda: put(store, [1], source=2), "no content source 2"),
        (lambda: store.store(at(1, 2), *(at(1).astype(np.uint16),) * 3, EMPTY), "different lengths"),
        (lambda: store.free(at(1)), "freed in which nothing"),
        (lambda: store.load(at(1)), "loaded in which nothing"),
        (lambda: store.free(at(99)), "not all of a device"),
    ):
        with pytest.raises(ProtocolError, match=match):
            call()
        store.validate()
    put(store, [1], SAME)
    with pytest.raises(ProtocolError, match="freed in which nothing"):
        store.free(at(1, 1))


def test_clear_frees_a_range() -> None:
    store = make()
    put(store, [1, 4, 5, 9], source=1)
    assert store.clear(4, 4) == 2
    assert store.holds(at(1, 4, 5, 9)).tolist() == [True, False, False, True]


@pytest.mark.parametrize("page", [TEXT, RANDOM])
def test_a_flipped_bit_is_seen(page: np.ndarray) -> None:
    store = make()
    put(store, [1], page)
    assert store._granules is not None
    store._granules._memory[int(store._first[1]), 5] ^= 1
    for call in (lambda: store.load(at(1)), lambda: store.page_bytes(1), store.validate):
        with pytest.raises(InvariantError, match=r"does not read back|no LZ4 block"):
            call()


def test_miscounts_are_seen() -> None:
    for name in ("stored_pages", "same_filled_pages", "incompressible_pages", "stored_bytes"):
        store = make()
        put(store, [1, 2], TEXT, SAME)
        setattr(store, name, getattr(store, name) + 1)
        with pytest.raises(InvariantError, match="counted"):
            store.validate()


def test_pages_never_used_cost_nothing() -> None:
    """A device of 64 GiB, and a snapshot of what is stored in it."""
    store = make(pages=1 << 24, physical=1 << 20)
    put(store, [5, 1 << 23], TEXT, SAME)
    header, arrays = plain.pack(store.snapshot())
    assert len(header) + sum(a.nbytes for a in arrays) < 4096


@pytest.mark.parametrize("codec", [None, "lz4"])
def test_a_snapshot_brings_everything_back(codec: str | None) -> None:
    store = make(codec)
    put(store, [1, 2, 3], TEXT, SAME, RANDOM)
    put(store, [4, 5], source=1)
    store.free(at(2, 5))
    header, arrays = plain.pack(store.snapshot())
    copy = make(codec)
    put(copy, [7, 8], RANDOM, TEXT)
    copy.restore(plain.unpack(header, arrays))
    copy.validate()
    for one in (store, copy):
        put(one, [9, 1], RANDOM, SAME)
    assert plain.digest(copy.snapshot()) == plain.digest(store.snapshot())
    assert copy.load(at(9, 1, 3))[3].tolist() == [RANDOM.tolist(), SAME.tolist(), RANDOM.tolist()]
