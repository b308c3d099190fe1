"""Replays programs that a real Linux 6.1 ran, and compares every single answer. See tests/data/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from privmem.cluster.oracle.recording import Program, read_recording
from privmem.cluster.oracle.replay import replay

DATA = Path(__file__).resolve().parents[1] / "data"
PROGRAMS = [
    program
    for recording in ("linux_mempolicy.jsonl.gz", "linux_filepages.jsonl.gz")
    for program in read_recording(DATA / recording)
]


def test_nothing_is_missing():
    assert len(PROGRAMS) == 525
    assert len({program.name for program in PROGRAMS}) == 525


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.name for program in PROGRAMS])
def test_as_linux(program: Program):
    verdict = replay(program, validate=True)
    assert (verdict.refused, verdict.disagreement) == ("", None)
