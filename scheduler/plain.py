"""Plain data: what a spec, a message or a snapshot may be made of, and its one byte form.

Plain data is None, bool, int, float, str, bytes, list, dict with str or int keys, and numpy arrays of
fixed-size numbers. It packs to a msgpack header, in which an array stands as its index, and the list of
arrays: so arrays travel as buffers and never pass through msgpack. Nothing packed here can name a class, so
unpacking executes nothing.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
import numpy as np

from privmem.scheduler.errors import ProtocolError

_ARRAY = 1  # msgpack ext code: a packed (index, dtype, shape)
#: Longest header that unpacking accepts: far above any real one, far below what would hurt.
HEADER_BYTES_MAX = 1 << 28

Packed = tuple[bytes, list[np.ndarray]]


def pack(value: Any) -> Packed:
    """Pack plain data to (header, arrays). Raises TypeError for what is not plain."""
    arrays: list[np.ndarray] = []

    def default(item: Any) -> msgpack.ExtType:
        if isinstance(item, np.ndarray):
            if item.dtype.kind not in "biuf":
                raise TypeError(f"an array of {item.dtype} is not plain data")
            arrays.append(np.ascontiguousarray(item))
            return msgpack.ExtType(_ARRAY, msgpack.packb((len(arrays) - 1, item.dtype.str, list(item.shape))))
        if isinstance(item, np.integer):
            return int(item)
        if isinstance(item, np.bool_):
            return bool(item)
        raise TypeError(f"{type(item).__name__} is not plain data")

    header = msgpack.packb(value, default=default, use_bin_type=True, strict_types=False)
    return header, arrays


def unpack(header: bytes, arrays: list[np.ndarray]) -> Any:
    """Inverse of `pack`. Raises ProtocolError when the header is not one that `pack` makes for these arrays."""

    def ext(code: int, body: bytes) -> np.ndarray:
        if code != _ARRAY:
            raise ProtocolError(f"unknown msgpack extension {code}")
        index, dtype, shape = msgpack.unpackb(body)
        if not 0 <= index < len(arrays):
            raise ProtocolError(f"array {index} of {len(arrays)} is missing")
        array = arrays[index]
        if array.dtype.str != dtype or list(array.shape) != shape:
            raise ProtocolError(
                f"array {index} is {array.dtype.str}{array.shape}, its header says {dtype}{shape}"
            )
        return array

    if len(header) > HEADER_BYTES_MAX:
        raise ProtocolError(f"a header of {len(header)} bytes is over the limit of {HEADER_BYTES_MAX}")
    try:
        return msgpack.unpackb(header, ext_hook=ext, strict_map_key=False, raw=False)
    except ProtocolError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not packed plain data: {error}") from error


def update_hash(running: hashlib.blake2b, packed: Packed) -> None:
    """Feed packed plain data to a running hash: lengths first, so that no two values feed alike."""
    header, arrays = packed
    running.update(len(header).to_bytes(8, "little"))
    running.update(header)
    for array in arrays:
        running.update(array.nbytes.to_bytes(8, "little"))
        running.update(array.data.cast("B") if array.size else b"")


def digest(value: Any) -> str:
    """Hex digest (128 bits) of plain data."""
    running = hashlib.blake2b(digest_size=16)
    update_hash(running, pack(value))
    return running.hexdigest()
