"""Compression codecs by name: well-kept libraries, one face.

The stored size of a block is the codec's own on these bytes, without a size header: the device knows a
block's length.
"""

from __future__ import annotations

from typing import Protocol

import lz4
import lz4.block
import zstandard

from privmem.scheduler.errors import ProtocolError


class Codec(Protocol):
    """Compresses and restores one block."""

    def compress(self, block: bytes) -> bytes:
        """Compressed form; may be longer than the block."""

    def decompress(self, stored: bytes, size: int) -> bytes:
        """The block of `size` bytes that `compress` was given."""


class Lz4:
    """LZ4 block format; level 1 is the fast compressor, 3 to 12 are LZ4 HC."""

    def __init__(self, level: int | None) -> None:
        self.high = level is not None and level >= 3
        self.level = level or 0

    def compress(self, block: bytes) -> bytes:
        if self.high:
            stored: bytes = lz4.block.compress(
                block, mode="high_compression", compression=self.level, store_size=False
            )
        else:
            stored = lz4.block.compress(block, store_size=False)
        return stored

    def decompress(self, stored: bytes, size: int) -> bytes:
        block: bytes = lz4.block.decompress(stored, uncompressed_size=size)
        return block


class Zstd:
    """Zstandard frames without checksum, content size and dictionary id; default level 1, the codec's fast
    one.
    """

    def __init__(self, level: int | None) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            1 if level is None else level, write_content_size=False, write_checksum=False, write_dict_id=False
        )
        self._compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self._decompressor = zstandard.ZstdDecompressor()

    def compress(self, block: bytes) -> bytes:
        return self._compressor.compress(block)

    def decompress(self, stored: bytes, size: int) -> bytes:
        return self._decompressor.decompress(stored, max_output_size=size)


CODECS: dict[str, type[Lz4] | type[Zstd]] = {"lz4": Lz4, "zstd": Zstd}


def make_codec(name: str, level: int | None) -> Codec:
    """The codec of this name. Raises ProtocolError for an unknown one; the configuration was checked before."""
    if name not in CODECS:
        raise ProtocolError(f"there is no codec {name!r} (known: {', '.join(sorted(CODECS))})")
    return CODECS[name](level)


def codec_versions() -> dict[str, str]:
    """Library versions: stored sizes depend on them, so they are part of a run's identity."""
    zstd = ".".join(str(part) for part in zstandard.ZSTD_VERSION)
    return {"lz4": str(lz4.library_version_string()), "zstd": zstd}
