"""Compression codecs by name: well-kept libraries behind one face.

The stored size of a block is the codec's own on these bytes, without a size header: the device knows how long
a block is. Codec objects hold no state between blocks, so one serves a device for a whole run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import lz4
import lz4.block
import zstandard

from privmem.scheduler.errors import InvariantError, ProtocolError

Block: TypeAlias = bytes | memoryview

#: Levels from here on are LZ4 HC in the reference command line (`LZ4HC_CLEVEL_MIN` of lz4 1.9 is 3).
LZ4_HC_LEVEL_MIN = 3


class Codec(Protocol):
    """Compresses and restores one block."""

    def compress(self, block: Block) -> bytes:
        """Compressed form; may be longer than the block."""

    def decompress(self, stored: Block, size: int) -> bytes:
        """The block of `size` bytes that `compress` was given. Raises InvariantError for bytes that are none."""


class Uncompressed:
    """Keeps blocks as they are. The only saving left is that of same-filled pages."""

    def __init__(self, level: int | None) -> None:
        """There are no levels."""

    def compress(self, block: Block) -> bytes:
        return bytes(block)

    def decompress(self, stored: Block, size: int) -> bytes:
        if len(stored) != size:
            raise InvariantError(f"a block of {size} bytes was kept as {len(stored)}")
        return bytes(stored)


class Lz4:
    """LZ4 block format. Levels 3 to 12 are LZ4 HC, 1 and 2 the fast compressor; below 0 is its acceleration."""

    def __init__(self, level: int | None) -> None:
        self.level = 1 if level is None else level

    def compress(self, block: Block) -> bytes:
        stored: bytes
        if self.level >= LZ4_HC_LEVEL_MIN:
            stored = lz4.block.compress(
                block, mode="high_compression", compression=self.level, store_size=False
            )
        elif self.level < 0:
            stored = lz4.block.compress(block, mode="fast", acceleration=-self.level, store_size=False)
        else:
            stored = lz4.block.compress(block, store_size=False)
        return stored

    def decompress(self, stored: Block, size: int) -> bytes:
        try:
            block: bytes = lz4.block.decompress(stored, uncompressed_size=size)
        except lz4.block.LZ4BlockError as error:
            raise InvariantError(f"stored bytes are no LZ4 block: {error}") from error
        return block


class Zstd:
    """Zstandard frames without checksum, content size and dictionary id; level 1 unless told otherwise."""

    def __init__(self, level: int | None) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            1 if level is None else level, write_content_size=False, write_checksum=False, write_dict_id=False
        )
        self._compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self._decompressor = zstandard.ZstdDecompressor()

    def compress(self, block: Block) -> bytes:
        return self._compressor.compress(block)

    def decompress(self, stored: Block, size: int) -> bytes:
        try:
            return self._decompressor.decompress(stored, max_output_size=size)
        except zstandard.ZstdError as error:
            raise InvariantError(f"stored bytes are no zstd frame: {error}") from error


CODECS: dict[str, Callable[[int | None], Codec]] = {"lz4": Lz4, "none": Uncompressed, "zstd": Zstd}


def make_codec(name: str, level: int | None) -> Codec:
    """The codec of this name; `level` None is its fast one. Raises ProtocolError for an unknown name: the
    configuration was checked before.
    """
    if name not in CODECS:
        raise ProtocolError(f"there is no codec {name!r} (known: {', '.join(sorted(CODECS))})")
    return CODECS[name](level)


def codec_versions() -> dict[str, str]:
    """Library versions: stored sizes depend on them, so they are part of a run's identity."""
    zstd = ".".join(str(part) for part in zstandard.ZSTD_VERSION)
    return {"lz4": str(lz4.library_version_string()), "zstd": zstd}
