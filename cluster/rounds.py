"""The rounds log: for each round, who took a step and the running hash that the participant had after it.

Two runs that should be equal and are not are told apart at the first round and participant in which their
logs differ (`privmem diff`), rather than by two final digests that say nothing.

On disk (`rounds.bin`) it is a stream of msgpack values: first a map `{"format": "privmem-rounds", "schema": 1,
"identity": hex digest, "names": [participants, sorted]}`, then for each round a list `[number, epoch,
horizon_ns, stepped, hashes]`, where `stepped` is the bytes of uint16 little-endian positions in `names` and
`hashes` holds 8 bytes for each of them, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from privmem.cluster.errors import ConfigError

FORMAT = "privmem-rounds"
SCHEMA = 1
#: Bytes of a running hash that the log keeps: 2**-64 for two different states to look equal.
ROUND_HASH_BYTES = 8
_POSITION = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class Round:
    """One round."""

    number: int
    epoch: int
    #: Virtual time that every host had reached when the round began.
    horizon_ns: int
    #: Participant -> first bytes of its running hash after the step; only those that took one.
    hashes: dict[str, bytes]


@dataclass(slots=True)
class RoundsLog:
    """All rounds of a run so far."""

    names: list[str]
    identity: str
    rounds: list[Round] = field(default_factory=list)

    def append(self, number: int, epoch: int, horizon_ns: int, running: Mapping[str, bytes]) -> None:
        """Add a round from the full running hashes of those that took a step in it."""
        hashes = {name: running[name][:ROUND_HASH_BYTES] for name in sorted(running)}
        self.rounds.append(Round(number, epoch, horizon_ns, hashes))

    def pack(self) -> bytes:
        """The log as the bytes of `rounds.bin`."""
        position = {name: at for at, name in enumerate(self.names)}
        head = {"format": FORMAT, "schema": SCHEMA, "identity": self.identity, "names": self.names}
        parts = [msgpack.packb(head)]
        for r in self.rounds:
            stepped = np.array([position[name] for name in r.hashes], dtype=_POSITION).tobytes()
            row = [r.number, r.epoch, r.horizon_ns, stepped, b"".join(r.hashes.values())]
            parts.append(msgpack.packb(row))
        return b"".join(parts)

    @staticmethod
    def unpack(packed: bytes, source: str) -> RoundsLog:
        """Inverse of `pack`; raises ConfigError naming `source` for bytes that are not a rounds log."""
        unpacker = msgpack.Unpacker(max_buffer_size=max(len(packed), 1))
        unpacker.feed(packed)
        try:
            head = unpacker.unpack()
            if not isinstance(head, dict) or head.get("format") != FORMAT:
                raise ConfigError(f"{source}: not a rounds log")
            if head.get("schema") != SCHEMA:
                raise ConfigError(
                    f"{source}: rounds log of schema {head.get('schema')!r}; this privmem reads {SCHEMA}"
                )
            log = RoundsLog(list(head["names"]), str(head["identity"]))
            while unpacker.tell() < len(packed):
                log.rounds.append(_round(unpacker.unpack(), log.names))
        except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
            raise ConfigError(f"{source}: damaged at byte {unpacker.tell()}: {error!r}") from error
        return log

    @staticmethod
    def read(path: Path) -> RoundsLog:
        """The log in a file. Raises ConfigError."""
        try:
            return RoundsLog.unpack(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _round(row: Any, names: list[str]) -> Round:
    number, epoch, horizon_ns, stepped, hashes = row
    positions = np.frombuffer(stepped, dtype=_POSITION).tolist()
    if len(hashes) != ROUND_HASH_BYTES * len(positions):
        raise ValueError(f"round {number} has {len(positions)} steps and {len(hashes)} bytes of hashes")
    cut = [hashes[at : at + ROUND_HASH_BYTES] for at in range(0, len(hashes), ROUND_HASH_BYTES)]
    return Round(number, epoch, horizon_ns, {names[p]: h for p, h in zip(positions, cut, strict=True)})


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two logs part."""

    number: int
    epoch: int
    horizon_ns: int
    #: First participant, by name, that differs; empty when one log just ends here.
    participant: str
    #: What differs, in words, with FIRST and SECOND for the two runs.
    what: str


def first_difference(first: RoundsLog, second: RoundsLog) -> Difference | None:
    """The first round, and in it the first participant, in which two logs differ; None when they are equal."""
    for a, b in zip(first.rounds, second.rounds, strict=False):
        if a != b:
            return _difference(a, b)
    if len(first.rounds) == len(second.rounds):
        return None
    swapped = len(first.rounds) < len(second.rounds)
    longer, ended, goes_on = (second, "FIRST", "SECOND") if swapped else (first, "SECOND", "FIRST")
    at = longer.rounds[min(len(first.rounds), len(second.rounds))]
    what = f"{ended} ends before this round, {goes_on} goes on"
    return Difference(at.number, at.epoch, at.horizon_ns, "", what)


def _difference(a: Round, b: Round) -> Difference:
    for name in sorted(a.hashes.keys() | b.hashes.keys()):
        mine, theirs = a.hashes.get(name), b.hashes.get(name)
        if mine == theirs:
            continue
        what = "its messages or state differ"
        if mine is None or theirs is None:
            what = f"it took a step in {'FIRST' if theirs is None else 'SECOND'} only"
        return Difference(a.number, a.epoch, min(a.horizon_ns, b.horizon_ns), name, what)
    what = f"the same steps at (round, epoch, horizon_ns) {_place(a)} in FIRST, {_place(b)} in SECOND"
    return Difference(a.number, a.epoch, a.horizon_ns, "", what)


def _place(r: Round) -> tuple[int, int, int]:
    return (r.number, r.epoch, r.horizon_ns)
