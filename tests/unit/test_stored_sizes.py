"""The stored size of every page of a recorded image is the codec's own, asked of the library directly."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import lz4.block
import numpy as np
import pytest
import zstandard

from privmem.cluster.traces import open_trace
from privmem.nodeagent.content import LITERAL, ContentTable
from privmem.nodeagent.device.backing import PageStore
from privmem.nodeagent.device.compression import CompressionEngine

RECORDINGS = Path(__file__).resolve().parents[2] / "configs" / "recordings"
#: Codec, level, block, and every how many pages: the slow levels take a part.
CASES = [
    ("lz4", None, 4096, 1),
    ("lz4", None, 1024, 2),
    ("lz4", -16, 4096, 3),
    ("lz4", 3, 4096, 3),
    ("lz4", 9, 2048, 7),
    ("lz4", 12, 4096, 31),
    ("zstd", None, 4096, 1),
    ("zstd", 3, 512, 11),
    ("zstd", -5, 4096, 3),
    ("zstd", 19, 4096, 61),
    ("none", None, 4096, 3),
]


@cache
def image(name: str) -> tuple[np.ndarray, np.ndarray]:
    return open_trace(RECORDINGS / f"{name}.pmtrace").images()


def own(codec: str, level: int | None, block: bytes) -> int:
    """Bytes that the library makes of a block."""
    if codec == "none":
        return len(block)
    if codec == "zstd":
        flags = {"write_content_size": False, "write_checksum": False, "write_dict_id": False}
        made = zstandard.ZstdCompressionParameters.from_level(1 if level is None else level, **flags)
        return len(zstandard.ZstdCompressor(compression_params=made).compress(block))
    if level is None:
        return len(lz4.block.compress(block, store_size=False))
    if level < 0:
        return len(lz4.block.compress(block, mode="fast", acceleration=-level, store_size=False))
    return len(lz4.block.compress(block, mode="high_compression", compression=level, store_size=False))


def expected(page: bytes, codec: str, level: int | None, block: int) -> tuple[int, int]:
    """(stored bytes, 64 B granules) of a page, by the rules in the words of the documentation."""
    if page == page[:8] * 512:
        return 0, 0
    sizes = [min(block, own(codec, level, page[at : at + block])) for at in range(0, 4096, block)]
    return sum(sizes), sum((size + 63) // 64 for size in sizes)


@pytest.mark.parametrize("name", ["python", "redis"])
@pytest.mark.parametrize(("codec", "level", "block", "every"), CASES)
def test_sizes_are_the_codecs_own(name: str, codec: str, level: int | None, block: int, every: int) -> None:
    """Of described pages of image 1, and of the same as literal ones in a store."""
    rows, table = image(name)
    index = np.arange(0, table.shape[1], every, dtype=np.uint32)
    source, version = np.full(len(index), 1, np.uint16), np.full(len(index), 1, np.uint16)
    content = ContentTable([{"kind": "image", "rows": "r", "table": "t"}], {"r": rows, "t": table})
    spec = {"codec": codec, "level": level, "block": block, "granule": 64}
    engine = CompressionEngine(spec)
    stored, granules = engine.measure(content, source, index, version)
    pages = rows[table[1, index]]
    wanted = [expected(page.tobytes(), codec, level, block) for page in pages]
    assert list(zip(stored.tolist(), granules.tolist(), strict=True)) == wanted
    store = PageStore(len(index), len(index) << 12, content, engine)
    dpa = np.arange(len(index), dtype=np.int32)
    store.store(dpa, np.full_like(source, LITERAL), index, version, pages)
    assert store._stored.tolist() == [size for size, _ in wanted]
    assert store.used_bytes == 64 * sum(nr for _, nr in wanted)
    assert (store.load(dpa)[3] == pages).all()
