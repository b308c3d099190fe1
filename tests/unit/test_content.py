"""Bytes of described pages: recorded ones as recorded, made-up ones with the statistics that are stated."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from privmem.cluster.config import workload_models
from privmem.nodeagent.content import (
    CHANGES_MAX,
    LITERAL,
    PHASE_SHIFT,
    PHASES_MAX,
    ZERO,
    ContentTable,
    is_same_filled,
    version_after,
)
from privmem.scheduler.errors import ProtocolError

ROWS = np.arange(3 * 4096, dtype=np.uint64).astype(np.uint8).reshape(3, 4096) ^ np.arange(
    3, dtype=np.uint8
).reshape(3, 1)
TABLE = np.array([[0, 1], [2, 1]], dtype=np.int32)
IMAGE = {"kind": "image", "rows": "x#rows", "table": "x#table"}


def generator(**more: Any) -> dict[str, Any]:
    return {
        "kind": "generator",
        "seed": 7,
        "zero_permille": 0,
        "random_bytes": 1000,
        "changed_bytes": 64,
    } | more


def table(*specs: dict[str, Any]) -> ContentTable:
    return ContentTable(list(specs), {"x#rows": ROWS, "x#table": TABLE})


def columns(source: int, index: Any, version: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    index, version = np.broadcast_arrays(np.atleast_1d(index), np.atleast_1d(version))
    return np.full(len(index), source, np.uint16), index.astype(np.uint32), version.astype(np.uint16)


def page(content: ContentTable, index: int, version: int = 0, source: int = 1) -> np.ndarray:
    return np.frombuffer(content.page_bytes(source, index, version), dtype=np.uint8)


def test_source_0_is_the_zero_page() -> None:
    assert bytes(table().page_bytes(ZERO, 99, 3)) == bytes(4096)


@pytest.mark.parametrize(
    ("index", "version", "row"), [(0, 0, 0), (0, 1, 2), (0, 2, 0), (1, 0, 1), (1, 5, 1), (3, 1, 1)]
)
def test_a_page_of_an_image_is_the_recorded_one(index: int, version: int, row: int) -> None:
    assert bytes(table(IMAGE).page_bytes(1, index, version)) == ROWS[row].tobytes()


def test_a_batch_mixes_sources() -> None:
    content = table(IMAGE, generator())
    source = np.array([2, 0, 1, 2], np.uint16)
    index, version = np.array([5, 1, 0, 6], np.uint32), np.array([0, 9, 1, 3], np.uint16)
    expected = [page(content, 5, 0, 2), np.zeros(4096, np.uint8), ROWS[2], page(content, 6, 3, 2)]
    assert content.pages(source, index, version).tolist() == np.stack(expected).tolist()


_MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """splitmix64, in Python's own integers."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def stream(key: int, nr: int) -> bytes:
    words = [mix((key + i * 0x9E3779B97F4A7C15) & _MASK) for i in range(-(-nr // 8))]
    return b"".join(word.to_bytes(8, "little") for word in words)[:nr]


def naive_page(spec: dict[str, Any], index: int, version: int) -> list[int]:
    base = mix(spec["seed"] ^ mix(index))
    made = [0] * 4096
    if mix(base) % 1000 >= spec["zero_permille"]:
        nr = spec["random_bytes"]
        line = [97 + byte % 26 for byte in stream(mix(base ^ 2), min(64, 4096 - nr))]
        made = [*stream(mix(base ^ 1), nr), *(line * 65)[: 4096 - nr]]
    for change in range(max(1, version - 15), version + 1):
        key = mix(base ^ (16 + change))
        for i, byte in enumerate(stream(key, spec["changed_bytes"])):
            made[(key % 64 * 64 + i) % 4096] = byte
    return made


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) - 1])
@pytest.mark.parametrize(("index", "version"), [(0, 0), (1, 1), (2, 17), (3, 40), (2**32 - 1, 65535)])
def test_made_up_bytes_are_those_of_a_plain_generator(seed: int, index: int, version: int) -> None:
    for spec in (generator(seed=seed, zero_permille=300), generator(seed=seed, changed_bytes=999)):
        assert page(table(spec), index, version).tolist() == naive_page(spec, index, version)


def test_made_up_bytes_stay_what_they_are() -> None:
    """Digests of old runs depend on them."""
    content = table(generator(zero_permille=100, seed=(1 << 63) - 1))
    found = [zlib.crc32(content.page_bytes(1, i, v)) for i, v in ((0, 0), (1, 0), (1, 1), (2**32 - 1, 65535))]
    assert found == [609279427, 3920997555, 3794830386, 4092005910]


def test_random_bytes_then_a_line_that_repeats() -> None:
    made = page(table(generator()), 3)
    text = made[1000:]
    assert bytes(text[:64]).isalpha() and bytes(text[:64]).islower()
    assert (text[64:] == text[:-64]).all()
    assert len(zlib.compress(made[:1000].tobytes())) > 1000
    assert len(zlib.compress(text.tobytes())) < 120


@pytest.mark.parametrize("random_bytes", [0, 1, 4095, 4096])
def test_any_share_of_random_bytes(random_bytes: int) -> None:
    made = page(table(generator(random_bytes=random_bytes)), 3)
    assert len(zlib.compress(made.tobytes())) == pytest.approx(random_bytes, abs=90)


@pytest.mark.parametrize("permille", [0, 100, 1000])
def test_share_of_zero_pages(permille: int) -> None:
    content = table(generator(zero_permille=permille, random_bytes=0))
    pages = content.pages(*columns(1, np.arange(6000), 0))
    zeros = int((pages == 0).all(axis=1).sum())
    # 6000 draws: four standard deviations are 93 pages.
    assert zeros == pytest.approx(6 * permille, abs=93 if 0 < permille < 1000 else 0)


def test_a_version_rewrites_one_run_of_bytes() -> None:
    content = table(generator())
    before, after = page(content, 3, 4), page(content, 3, 5)
    at = np.flatnonzero(before != after)
    assert 48 <= len(at) <= 64 and at.max() - at.min() < 64 and at.min() // 64 == at.max() // 64
    for version in (0, 1, 9):
        assert page(content, 3, version).tolist() == page(content, 3, version).tolist()


def test_a_page_shows_its_last_changes_only() -> None:
    content = table(generator(changed_bytes=4096))
    whole = page(content, 3, 5)
    assert len(zlib.compress(whole.tobytes())) > 4096
    erased = table(generator(random_bytes=0))
    many = [len(zlib.compress(page(erased, 3, v).tobytes())) for v in (CHANGES_MAX, 1000, 65535)]
    assert all(size < 64 * CHANGES_MAX + 300 for size in many)


def test_a_zero_page_holds_what_is_written_to_it() -> None:
    written = page(table(generator(zero_permille=1000)), 3, 1)
    assert 0 < np.count_nonzero(written) <= 64


def test_pages_of_other_indexes_and_seeds_differ() -> None:
    pages = table(generator(), generator(seed=8)).pages(*columns(1, np.arange(50), 0))
    assert len({row.tobytes() for row in pages}) == 50
    assert page(table(generator(seed=8)), 0).tolist() != pages[0].tolist()


def test_equal_keys_mean_equal_bytes() -> None:
    content = table(IMAGE, generator(), generator(changed_bytes=0))
    index, version = (a.ravel() for a in np.meshgrid(np.arange(4), np.arange(4)))
    rows: dict[int, bytes] = {}
    nr_keys = []
    for source in (0, 1, 2, 3):
        names = columns(source, index, version)
        keys = content.keys(*names).tolist()
        nr_keys.append(len(set(keys)))
        for key, made in zip(keys, content.pages(*names), strict=True):
            assert rows.setdefault(key, made.tobytes()) == made.tobytes()
    # One zero page; three rows of the image, of which two are reached by even indexes; 4 pages of 4 versions;
    # and 4 pages that never change.
    assert nr_keys == [1, 3, 16, 4]


@pytest.mark.parametrize("source", [1, LITERAL])
def test_an_unknown_source_is_refused(source: int) -> None:
    for call in (table().pages, table().keys):
        with pytest.raises(ProtocolError, match=f"no content source {source}"):
            call(*columns(source, 0, 0))


def test_a_table_that_names_no_row_is_refused() -> None:
    with pytest.raises(ProtocolError, match="rows beyond its 3"):
        ContentTable([IMAGE], {"x#rows": ROWS, "x#table": TABLE + 1})
    with pytest.raises(ProtocolError, match="not pages of bytes"):
        ContentTable([IMAGE], {"x#rows": ROWS[:, :100], "x#table": TABLE})


@pytest.mark.parametrize(
    "wrong", [{"kind": "film"}, generator(zero_permille=1001), generator(random_bytes=-1)]
)
def test_a_wrong_source_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        table(wrong)


def test_same_filled_is_one_word_all_over() -> None:
    pages = np.zeros((4, 4096), np.uint8)
    pages[1] = np.tile(np.arange(8, dtype=np.uint8), 512)
    pages[2] = np.tile(np.arange(16, dtype=np.uint8), 256)
    pages[3, 4095] = 1
    assert is_same_filled(pages).tolist() == [True, True, False, False]


PHASED = {"phases": [[100, 4096], [200, 0]]}


def test_a_page_that_is_written_in_a_phase_is_of_its_kind() -> None:
    content = table(generator(random_bytes=0, changed_bytes=0, zero_permille=1000, **PHASED))
    written = [version_after(np.array([7], np.uint16), phase)[0] for phase in (1, 2)]
    sizes = [len(zlib.compress(page(content, 3, int(version)).tobytes())) for version in (7, *written)]
    assert sizes[0] < 40 and sizes[1] > 4096 and 60 < sizes[2] < 120
    assert [int(version) for version in written] == [(1 << PHASE_SHIFT) | 8, (2 << PHASE_SHIFT) | 8]


def test_phases_of_a_batch_are_those_of_its_pages() -> None:
    content = table(generator(**PHASED))
    version = np.array([0, 1 << PHASE_SHIFT | 3, 2 << PHASE_SHIFT, 1 << PHASE_SHIFT | 4], np.uint16)
    source, index, version = columns(1, np.array([5, 6, 7, 8]), version)
    apart = [page(content, int(i), int(v)) for i, v in zip(index, version, strict=True)]
    assert content.pages(source, index, version).tolist() == np.stack(apart).tolist()
    assert len(set(content.keys(source, index, version).tolist())) == 4


def test_a_phase_counts_as_a_content_of_its_own_even_when_writes_change_nothing() -> None:
    content = table(generator(changed_bytes=0, **PHASED))
    source, index, version = columns(1, 4, np.array([3, 9, 1 << PHASE_SHIFT | 3, 1 << PHASE_SHIFT | 9]))
    keys = content.keys(source, index, version).tolist()
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_rewrites_count_round_within_a_phase() -> None:
    assert version_after(np.array([0x1FFF, 0x0FFF, 0xFFFF], np.uint16), 1).tolist() == [0x1000] * 3


def test_configuration_and_contents_know_as_many_phases() -> None:
    assert workload_models.PHASES_MAX == PHASES_MAX
    with pytest.raises(ProtocolError):
        table(generator(phases=[[at, 0] for at in range(PHASES_MAX + 1)]))
