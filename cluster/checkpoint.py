"""Checkpoints: the whole state of a run between two epochs, in one file that is valid or refused.

Layout, all numbers little-endian:

    offset  bytes
    0       8       magic
    8       4       schema version (uint32)
    12      8       length of the header (uint64)
    20      8       length of the file (uint64)
    28      16      blake2b-128 of the 28 bytes above and the header
    44      ...     header: msgpack map, see below
    ...     ...     the arrays' bytes, back to back
    end-16  16      blake2b-128 of the whole file up to here

The header holds `identity` (of the run), `epoch`, `virtual_ns`, `message_schema`, `source` (hash of the privmem
that wrote it), `tree` (the snapshot, packed by `privmem.scheduler.plain`, in which arrays stand as indices) and
`arrays`, a list of `[dtype, shape, blake2b-64]`.

A checkpoint is plain data: reading one executes nothing, and allocates no more than the file's size. It is
written to another name, synced and renamed, so a crash leaves the file whole or not there.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from privmem.cluster.errors import CheckpointError, ProtocolError
from privmem.scheduler import plain
from privmem.scheduler.messages import SCHEMA_VERSION

MAGIC = b"PMCKPT\r\n"
#: Version of the layout and of what participants and engine put into it.
CHECKPOINT_SCHEMA = 1
#: Checkpoints of a run that are kept: the newest, and one to fall back to.
KEPT = 2
FOLDER = "checkpoints"

_FIXED = struct.Struct("<8sIQQ")
_HASH_BYTES = 16
_BLOB_HASH_BYTES = 8
_HEADER_AT = _FIXED.size + _HASH_BYTES


class DamagedCheckpoint(CheckpointError):
    """The file's bytes are not those that were written."""


def write_checkpoint(folder: Path, snapshot: dict[str, Any], identity: dict[str, Any], source: str) -> Path:
    """Write an engine's snapshot to `folder`, and remove all but the newest there. Returns the file."""
    tree, arrays = plain.pack(snapshot)
    header = msgpack.packb(
        {
            "identity": identity,
            "epoch": snapshot["epoch"],
            "virtual_ns": snapshot["virtual_ns"],
            "message_schema": SCHEMA_VERSION,
            "source": source,
            "tree": tree,
            "arrays": [[a.dtype.str, list(a.shape), _blob_hash(_bytes_of(a))] for a in arrays],
        }
    )
    blobs = [_bytes_of(array) for array in arrays]
    length = _HEADER_AT + len(header) + sum(len(blob) for blob in blobs) + _HASH_BYTES
    fixed = _FIXED.pack(MAGIC, CHECKPOINT_SCHEMA, len(header), length)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch-{snapshot['epoch']:06d}.ckpt"
    _write_whole(path, [fixed, _hash([fixed, header]), header, *blobs])
    for old in checkpoints(folder)[KEPT:]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first; half-written ones are not among them."""
    found = [path for path in folder.glob("epoch-*.ckpt") if path.stem.removeprefix("epoch-").isdigit()]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("epoch-")), reverse=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The header of a checkpoint, with the snapshot under `snapshot`. Raises CheckpointError."""
    try:
        body = memoryview(bytearray(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    header_end = _check_frame(path, body)
    try:
        header = msgpack.unpackb(body[_HEADER_AT:header_end], strict_map_key=False)
        arrays, at = [], header_end
        for number, (dtype, shape, expected) in enumerate(header["arrays"]):
            array, at = _array(path, body, at, dtype, shape)
            if _blob_hash(_bytes_of(array)) != expected:
                raise DamagedCheckpoint(
                    f"{path}: damaged: array {number} of {len(header['arrays'])}, at {at}"
                )
            arrays.append(array)
        if at != len(body) - _HASH_BYTES:
            raise DamagedCheckpoint(
                f"{path}: damaged: {len(body) - _HASH_BYTES - at} bytes after the last array"
            )
        if not _ends_with_its_hash(body):
            raise DamagedCheckpoint(f"{path}: damaged: the hash of the whole, at {at}")
        header["snapshot"] = plain.unpack(header.pop("tree"), arrays)
    except (ValueError, TypeError, LookupError, ProtocolError, msgpack.UnpackException) as error:
        raise DamagedCheckpoint(f"{path}: damaged: header at {_HEADER_AT}: {error!r}") from error
    checked: dict[str, Any] = header
    return checked


def read_newest(folder: Path, identity: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint of the run with this identity that is whole; None when there is none at all.

    A damaged one is passed over for an older one, which `note` is told. A checkpoint of another run or schema
    is refused.
    """
    first_error: DamagedCheckpoint | None = None
    for path in checkpoints(folder):
        try:
            header = read_checkpoint(path)
        except DamagedCheckpoint as error:
            first_error = first_error or error
            continue
        if first_error is not None:
            note(f"{first_error}; going on from the older {path.name}")
        _must_be_of(path, header, identity)
        return header
    if first_error is not None:
        raise first_error
    return None


def _must_be_of(path: Path, header: dict[str, Any], identity: dict[str, Any]) -> None:
    if header["message_schema"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: its messages have schema version {header['message_schema']}, "
            f"those of this privmem {SCHEMA_VERSION}"
        )
    theirs = header["identity"]
    if plain.digest(theirs) == plain.digest(identity):
        return
    keys = sorted(theirs.keys() | identity.keys())
    wrong = [k for k in keys if plain.digest(theirs.get(k)) != plain.digest(identity.get(k))]
    raise CheckpointError(f"{path}: is of another run: its {', '.join(wrong) or 'order'} differs")


def _check_frame(path: Path, body: memoryview) -> int:
    """Magic, version, lengths and hashes; returns where the header ends."""
    if len(body) < _HEADER_AT:
        raise DamagedCheckpoint(f"{path}: damaged: ends at {len(body)}, within its first {_HEADER_AT} bytes")
    magic, version, header_bytes, length = _FIXED.unpack_from(body)
    if magic != MAGIC:
        raise DamagedCheckpoint(f"{path}: not a checkpoint, or damaged: the bytes at 0 are {magic!r}")
    if version != CHECKPOINT_SCHEMA:
        if not _ends_with_its_hash(body):
            raise DamagedCheckpoint(f"{path}: damaged: the schema version {version}, at 8")
        raise CheckpointError(
            f"{path}: checkpoint of schema version {version}; this privmem reads {CHECKPOINT_SCHEMA}"
        )
    if length != len(body):
        raise DamagedCheckpoint(f"{path}: damaged: {len(body)} bytes long, but says {length} at 20")
    header_end = _HEADER_AT + int(header_bytes)
    if header_end > len(body) - _HASH_BYTES:
        raise DamagedCheckpoint(
            f"{path}: damaged: a header of {header_bytes} bytes, as said at 12, does not fit"
        )
    expected = bytes(body[_FIXED.size : _HEADER_AT])
    if _hash([body[: _FIXED.size], body[_HEADER_AT:header_end]]) != expected:
        raise DamagedCheckpoint(f"{path}: damaged: the header, bytes {_HEADER_AT} to {header_end}")
    return header_end


def _ends_with_its_hash(body: memoryview) -> bool:
    return _hash([body[:-_HASH_BYTES]]) == bytes(body[-_HASH_BYTES:])


def _array(path: Path, body: memoryview, at: int, dtype: str, shape: list[int]) -> tuple[np.ndarray, int]:
    kind = np.dtype(dtype)
    count = 1
    for extent in shape:
        count *= int(extent)
    end = at + count * kind.itemsize
    if kind.kind not in "biuf" or count < 0 or end > len(body) - _HASH_BYTES:
        raise DamagedCheckpoint(f"{path}: damaged: no {dtype}{shape} fits at {at}")
    # A copy: aligned as compiled code expects it, and free to be changed.
    return np.frombuffer(body[at:end], dtype=kind).reshape(shape).copy(), end


def _write_whole(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    unfinished = path.with_suffix(".tmp")
    running = hashlib.blake2b(digest_size=_HASH_BYTES)
    with unfinished.open("wb") as file:
        for part in parts:
            running.update(part)
            file.write(part)
        file.write(running.digest())
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _hash(parts: Sequence[bytes | memoryview]) -> bytes:
    running = hashlib.blake2b(digest_size=_HASH_BYTES)
    for part in parts:
        running.update(part)
    return running.digest()


def _blob_hash(blob: bytes | memoryview) -> bytes:
    return hashlib.blake2b(blob, digest_size=_BLOB_HASH_BYTES).digest()


def _bytes_of(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
