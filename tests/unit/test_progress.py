"""The progress display, with a clock of its own."""

from __future__ import annotations

import io

import pytest

from privmem.cluster import progress
from privmem.cluster.progress import Display, rate, span


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_units() -> None:
    assert [span(ns) for ns in (0, 999, 1500, 12_500_000, 2_000_000_000)] == [
        "0 ns",
        "999 ns",
        "1.5 us",
        "12.5 ms",
        "2 s",
    ]
    assert [rate(n) for n in (0, 999, 1500, 2.5e6, 3e9)] == ["0 ", "999 ", "1.5 k", "2.5 M", "3 G"]


def test_lines_now_and_then(clock: list[float]) -> None:
    stream = io.StringIO()
    display = Display(stream=stream)
    display.update(1, 2, 3)  # before it began
    display.waiting("starting Ray")
    display.begin(1_000_000)
    for seconds in (9, 10, 11, 25):
        clock[0] = 100.0 + seconds
        display.update(seconds * 1_000_000, 100_000_000, 1_000_000 + seconds * 2000)
    assert stream.getvalue() == (
        "starting Ray ...\n"
        "10 ms of at most 100 ms (10 %), 2 kaccesses/s\n"
        "25 ms of at most 100 ms (25 %), 2 kaccesses/s\n"
    )


def test_one_line_rewritten_on_a_terminal(clock: list[float]) -> None:
    stream = Terminal()
    display = Display(stream=stream)
    display.waiting("wait")
    display.begin(0)
    clock[0] += 1
    display.update(1, 4, 8)
    display.say("note")
    shown = stream.getvalue()
    line = "1 ns of at most 4 ns (25 %), 8 accesses/s"
    assert shown == f"\rwait ...\rwait ...\r{line}\r{line}\r{'':<{len(line)}}\rnote\n"


def test_quiet(clock: list[float]) -> None:
    for stream in (io.StringIO(), Terminal()):
        display = Display(quiet=True, stream=stream)
        display.waiting("wait")
        display.begin(0)
        clock[0] += 60
        display.update(1, 4, 8)
        display.say("note")
        display.clear()
        assert stream.getvalue() == ""
