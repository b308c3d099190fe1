"""Codecs by name, their levels and versions."""

from __future__ import annotations

import lz4
import pytest
import zstandard

from privmem.nodeagent.device.codecs import CODECS, codec_versions, make_codec
from privmem.scheduler.errors import ProtocolError

TEXT = "".join(f"line {n} of a page of text\n" for n in range(200)).encode()[:4096]


def test_an_unknown_codec_is_told_which_there_are() -> None:
    with pytest.raises(ProtocolError, match="no codec 'lz5' \\(known: lz4, none, zstd\\)"):
        make_codec("lz5", None)


def test_versions_are_those_of_the_libraries() -> None:
    zstd = ".".join(map(str, zstandard.ZSTD_VERSION))
    assert codec_versions() == {"lz4": lz4.library_version_string(), "zstd": zstd}


def test_lz4_compresses_harder_from_level_3_on_and_less_below_0() -> None:
    sizes = [len(make_codec("lz4", level).compress(TEXT)) for level in (-64, None, 1, 2, 3, 12)]
    accelerated, fast, one, two, high, highest = sizes
    assert fast == one == two
    assert accelerated > fast > high >= highest


def test_zstd_takes_levels() -> None:
    assert len(make_codec("zstd", 19).compress(TEXT)) < len(make_codec("zstd", 1).compress(TEXT))
    assert make_codec("zstd", None).compress(TEXT) == make_codec("zstd", 1).compress(TEXT)


def test_none_keeps_bytes_as_they_are() -> None:
    assert CODECS["none"](None).compress(TEXT) == TEXT
