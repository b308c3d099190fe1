"""Every codec, through the same suite."""

from __future__ import annotations

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.nodeagent.device.codecs import CODECS, make_codec
from privmem.scheduler.errors import InvariantError

LEVELS: dict[str, list[int | None]] = {
    "lz4": [None, -8, 1, 3, 9, 12],
    "none": [None],
    "zstd": [None, 1, 3, 19],
}
ALL = [(name, level) for name, levels in sorted(LEVELS.items()) for level in levels]


def own_size(name: str, level: int | None, block: bytes) -> int:
    """What the library makes of a block, asked without our code in between."""
    if name == "none":
        return len(block)
    if name == "zstd":
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level or 1, write_content_size=False, write_checksum=False
        )
        return len(zstandard.ZstdCompressor(compression_params=parameters).compress(block))
    if level is not None and level >= 3:
        header = lz4.block.compress(block, mode="high_compression", compression=level)
    elif level is not None and level < 0:
        header = lz4.block.compress(block, mode="fast", acceleration=-level)
    else:
        header = lz4.block.compress(block)
    return len(header) - 4  # the size that the library puts in front


def test_levels_of_every_codec_are_tried() -> None:
    assert sorted(LEVELS) == sorted(CODECS)


@pytest.mark.parametrize(("name", "level"), ALL)
@given(block=st.binary(min_size=64, max_size=256), repeats=st.integers(1, 16))
@settings(max_examples=15, deadline=None)
def test_what_goes_in_comes_out(name: str, level: int | None, block: bytes, repeats: int) -> None:
    block = block * repeats
    codec = make_codec(name, level)
    stored = codec.compress(block)
    assert codec.decompress(stored, len(block)) == block
    assert codec.compress(memoryview(block)) == stored == make_codec(name, level).compress(block)
    assert len(stored) == own_size(name, level, block)


@pytest.mark.parametrize(("name", "level"), ALL)
def test_blocks_do_not_see_each_other(name: str, level: int | None) -> None:
    first, second = b"abcdefgh" * 512, np.random.default_rng(1).bytes(4096)
    codec = make_codec(name, level)
    alone = make_codec(name, level).compress(second)
    codec.compress(first)
    assert codec.compress(second) == alone


@pytest.mark.parametrize(("name", "level"), ALL)
def test_cut_bytes_are_an_invariant_error(name: str, level: int | None) -> None:
    codec = make_codec(name, level)
    stored = codec.compress(np.random.default_rng(2).bytes(4096))
    with pytest.raises(InvariantError, match=r"block|frame"):
        codec.decompress(stored[: len(stored) // 2], 4096)
