"""What pages take once they are compressed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privmem.nodeagent.content import ContentTable
from privmem.nodeagent.device.codecs import make_codec
from privmem.nodeagent.device.compression import COUNTS, CompressionEngine
from privmem.scheduler.errors import InvariantError

RANDOM = np.frombuffer(np.random.default_rng(3).bytes(4096), dtype=np.uint8)
TEXT = np.frombuffer(
    "".join(f"line {n} of a page of text\n" for n in range(200)).encode()[:4096], dtype=np.uint8
)
WORD = np.tile(np.arange(8, dtype=np.uint8), 512)
HALF = np.concatenate([RANDOM[:2048], TEXT[:2048]])
GENERATOR = {"kind": "generator", "seed": 1, "zero_permille": 200, "random_bytes": 900, "changed_bytes": 64}


def engine(memo_pages: int = 1000, **more: Any) -> CompressionEngine:
    spec = {"codec": "lz4", "level": None, "block": 4096, "granule": 64} | more
    return CompressionEngine(spec, memo_pages)


def sizes_of(made: CompressionEngine, page: np.ndarray) -> list[int]:
    """Stored bytes of each block."""
    sizes: list[int] = made.compress(page[np.newaxis])[0][0].tolist()
    return sizes


def granules(made: CompressionEngine, page: np.ndarray) -> int:
    return int(made.granules_of(made.compress(page[np.newaxis])[0])[0])


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("block", [1024, 2048, 4096])
@pytest.mark.parametrize("page", [RANDOM, TEXT, HALF])
def test_blocks_come_back(codec: str, block: int, page: np.ndarray) -> None:
    made = engine(codec=codec, block=block)
    pages = np.stack([page, WORD, page[::-1]])
    lengths, data = made.compress(pages)
    assert (lengths.shape, lengths[1].sum(), lengths.sum()) == ((3, 4096 // block), 0, len(data))
    assert (made.restore(lengths[[0, 2]], data) == pages[[0, 2]]).all()


def test_blocks_that_give_less_than_a_page_are_refused() -> None:
    stored = make_codec("lz4", None).compress(b"x" * 4000)
    with pytest.raises(InvariantError, match="less than a block"):
        engine().restore(np.array([[len(stored)]]), stored)


def test_a_same_filled_page_takes_nothing() -> None:
    for page in (np.zeros(4096, np.uint8), WORD):
        assert sizes_of(engine(), page) == [0]
        assert granules(engine(), page) == 0


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
def test_what_does_not_shrink_is_kept_raw(codec: str) -> None:
    lengths, data = engine(codec=codec).compress(RANDOM[np.newaxis])
    assert (lengths.tolist(), data) == ([[4096]], RANDOM.tobytes())
    assert granules(engine(codec=codec), RANDOM) == 64 == engine().granules_max


def test_repetition_is_worth_more_than_two_to_one() -> None:
    for codec in ("lz4", "zstd"):
        assert 0 < granules(engine(codec=codec), TEXT) < 32
    assert granules(engine(codec="none"), TEXT) == 64


def test_only_blocks_that_shrink_are_compressed() -> None:
    lengths = sizes_of(engine(block=2048), HALF)
    assert lengths[0] == 2048 and lengths[1] < 1024


def test_every_block_takes_whole_granules_of_its_own() -> None:
    made = engine(block=1024, granule=256)
    assert made.granules_of(np.array([[1, 256, 257, 1024], [0] * 4])).tolist() == [1 + 1 + 2 + 4, 0]
    assert made.granules_max == 16


def test_smaller_blocks_compress_less() -> None:
    sizes = [sum(sizes_of(engine(block=block), TEXT)) for block in (512, 1024, 2048, 4096)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


@pytest.mark.parametrize(("block", "granule"), [(3000, 64), (4096, 96), (64, 128)])
def test_blocks_and_granules_must_divide(block: int, granule: int) -> None:
    with pytest.raises(InvariantError, match="make no page"):
        engine(block=block, granule=granule)


def described(nr: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    source = draw.integers(0, 2, nr).astype(np.uint16)
    return source, draw.integers(0, 20, nr).astype(np.uint32), draw.integers(0, 3, nr).astype(np.uint16)


@pytest.mark.parametrize("memo_pages", [1, 7, 1000])
def test_a_memo_of_any_size_gives_the_same_sizes(memo_pages: int) -> None:
    content = ContentTable([GENERATOR], {})
    made = engine(memo_pages)
    codec = make_codec("lz4", None)
    for seed in range(4):
        columns = described(300, seed)
        stored, taken = made.measure(content, *columns)
        expected = []
        for page in content.pages(*columns):
            same = (page.view(np.uint64) == page.view(np.uint64)[0]).all()
            expected.append(0 if same else min(4096, len(codec.compress(page.tobytes()))))
        assert stored.tolist() == expected
        assert taken.tolist() == [-(-size // 64) for size in expected]
        assert len(made._young) <= memo_pages and len(made._old) <= memo_pages


def test_known_content_is_not_compressed_again() -> None:
    content, made, calls = ContentTable([GENERATOR], {}), engine(), []
    real = made.codec
    made.codec = type(
        "Counting", (), {"compress": lambda self, block: calls.append(1) or real.compress(block)}
    )()
    columns = described(300, 0)
    first = made.measure(content, *columns)
    nr_calls = len(calls)
    distinct = set(content.keys(*columns).tolist()) - {0}
    assert 0 < nr_calls <= len(distinct) <= 60
    again = made.measure(content, *columns)
    assert [a.tolist() for a in again] == [a.tolist() for a in first] and len(calls) == nr_calls


def test_counts_are_of_all_pages_that_came_in() -> None:
    made = engine()
    made.count(np.array([0, 4096, 100]), np.array([0, 64, 2]))
    made.count(np.array([65]), np.array([2]))
    assert made.counts == dict(zip(COUNTS, (4, 1, 1, 4 * 4096, 4261, 68 * 64), strict=True))
