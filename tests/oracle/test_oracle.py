"""Replays programs that a real Linux ran (6.1 and 6.12), and compares every answer. See tests/data/README.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privmem.cluster.oracle.recording import Program, read_recording
from privmem.cluster.oracle.replay import replay

#: Recordings of which every program must agree.
FULLY = {
    "linux_mempolicy.jsonl.gz": 275,
    "linux_filepages.jsonl.gz": 250,
    "linux_fallback.jsonl.gz": 97,
    "linux_demotion.jsonl.gz": 100,
    "linux_protection.jsonl.gz": 100,
    "linux_queries.jsonl.gz": 100,
    "linux_readahead.jsonl.gz": 100,
    "linux_mapahead.jsonl.gz": 97,
    "linux_swap.jsonl.gz": 97,
    "linux_swapahead.jsonl.gz": 86,
    "linux_many.jsonl.gz": 210,
    "linux_remap.jsonl.gz": 210,
    "linux_pressure.jsonl.gz": 59,
    "linux_ranges.jsonl.gz": 150,
    "linux612_mempolicy.jsonl.gz": 100,
    "linux612_filepages.jsonl.gz": 100,
    "linux612_weighted.jsonl.gz": 95,
    "linux612_readahead.jsonl.gz": 100,
    "linux612_mapahead.jsonl.gz": 99,
}

#: Of each of these recordings so many programs are replayed in the quick part.
QUICKLY = {"linux_many.jsonl.gz": 25, "linux_remap.jsonl.gz": 50, "linux_ranges.jsonl.gz": 50}

DATA = Path(__file__).resolve().parents[1] / "data"
PROGRAMS = [program for name in FULLY for program in read_recording(DATA / name)]


def test_nothing_is_missing():
    assert len(PROGRAMS) == sum(FULLY.values())
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)


def _cases() -> Iterator[Any]:
    at: Counter[str] = Counter()
    for program in PROGRAMS:
        name = Path(program.file).name
        at[name] += 1
        late = at[name] > QUICKLY.get(name, len(PROGRAMS))
        yield pytest.param(program, id=program.name, marks=[pytest.mark.full] if late else [])


@pytest.mark.parametrize("program", list(_cases()))
def test_as_linux(program: Program):
    verdict = replay(program, validate=True)
    assert (verdict.refused, verdict.disagreement) == ("", None)


def test_no_recording_is_forgotten():
    files = {path.name for path in DATA.glob("*.jsonl.gz")}
    assert files == {*FULLY}
