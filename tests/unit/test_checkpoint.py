"""Checkpoint files: whole or refused, never something else."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privmem.cluster import checkpoint
from privmem.cluster.checkpoint import (
    DamagedCheckpoint,
    checkpoints,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)
from privmem.cluster.errors import CheckpointError
from privmem.scheduler import plain

IDENTITY = {"seed": 1, "name": "x"}


def snapshot(epoch: int = 3) -> dict[str, Any]:
    arrays = {
        "none": np.zeros((0, 4096), dtype=np.uint8),
        "table": np.arange(6, dtype=np.int32).reshape(2, 3),
        "words": np.array([1 << 63], dtype=np.uint64),
    }
    return {
        "epoch": epoch,
        "virtual_ns": epoch * 100,
        "hash": b"\x00\xff",
        "by_nid": {0: [1, None]},
        **arrays,
    }


def write(folder: Path, epoch: int = 3) -> Path:
    return write_checkpoint(folder, snapshot(epoch), IDENTITY, "source")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    header = read_checkpoint(path)
    assert path.name == "epoch-000003.ckpt"
    assert plain.digest(header["snapshot"]) == plain.digest(snapshot())
    assert header["snapshot"]["table"].flags.writeable
    assert header["snapshot"]["words"].flags.aligned
    assert [(k, header[k]) for k in ("identity", "epoch", "virtual_ns", "source")] == [
        ("identity", IDENTITY),
        ("epoch", 3),
        ("virtual_ns", 300),
        ("source", "source"),
    ]


def test_the_last_two_are_kept_and_half_written_ones_ignored(tmp_path: Path) -> None:
    (tmp_path / "epoch-000009.tmp").write_bytes(b"half")
    for epoch in (9, 10, 11):
        write(tmp_path, epoch)
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-000011.ckpt", "epoch-000010.ckpt"]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write(tmp_path)
    body = path.read_bytes()
    for at in range(len(body)):
        damaged = bytearray(body)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint) as caught:
            read_checkpoint(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "damaged" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_every_truncation_and_a_longer_file_are_found(tmp_path: Path) -> None:
    path = write(tmp_path)
    body = path.read_bytes()
    for length in [*range(len(body)), len(body) + 1]:
        path.write_bytes((body + b"\0")[:length])
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(path)


def resealed(body: bytes) -> bytes:
    """The bytes with header and file hashes made right again."""
    fixed, header_bytes = body[:28], struct.unpack_from("<Q", body, 12)[0]
    head = body[44 : 44 + header_bytes]
    whole = fixed + checkpoint._hash([fixed, head]) + body[44:-16]
    return whole + checkpoint._hash([whole])


def test_another_schema_version_is_refused_not_called_damage(tmp_path: Path) -> None:
    path = write(tmp_path)
    body = bytearray(path.read_bytes())
    body[8] = 2
    path.write_bytes(resealed(bytes(body)))
    with pytest.raises(CheckpointError) as caught:
        read_newest(tmp_path, IDENTITY, pytest.fail)
    assert str(caught.value) == f"{path}: checkpoint of schema version 2; this privmem reads 1"


def test_another_message_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", 3)
    with pytest.raises(CheckpointError) as caught:
        read_newest(tmp_path, IDENTITY, pytest.fail)
    assert str(caught.value) == f"{path}: its messages have schema version 2, those of this privmem 3"


def test_a_header_that_lies_about_its_arrays_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path)
    body = path.read_bytes()
    for old, new in (
        (b"<i4", b"<i8"),
        (b"<i4", b"|O8"),
        (b"<i4", b"zzz"),
        (b"\x92\x02\x03", b"\x92\x7f\x7f"),
    ):
        path.write_bytes(resealed(body.replace(old, new)))
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(path)


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_newest(tmp_path, IDENTITY | {"seed": 2, "epoch_ns": 1}, pytest.fail)
    assert str(caught.value) == f"{path}: is of another run: its epoch_ns, seed differs"


def test_a_damaged_one_is_passed_over_for_an_older_one(tmp_path: Path) -> None:
    assert read_newest(tmp_path, IDENTITY, pytest.fail) is None
    assert read_newest(tmp_path / "nowhere", IDENTITY, pytest.fail) is None
    older, newer = write(tmp_path, 4), write(tmp_path, 5)
    newer.write_bytes(newer.read_bytes()[:-1])
    notes: list[str] = []
    header = read_newest(tmp_path, IDENTITY, notes.append)
    assert header is not None and header["epoch"] == 4
    assert len(notes) == 1 and notes[0].startswith(f"{newer}: damaged")
    assert notes[0].endswith("going on from the older epoch-000004.ckpt")
    older.unlink()
    with pytest.raises(DamagedCheckpoint):
        read_newest(tmp_path, IDENTITY, pytest.fail)
