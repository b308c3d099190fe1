"""The rounds log: its file, and where two of them part."""

from __future__ import annotations

from pathlib import Path

import pytest

from privmem.cluster.cli import main
from privmem.cluster.errors import ConfigError
from privmem.cluster.rounds import Difference, RoundsLog, first_difference


def log_of(*rounds: dict[str, int], identity: str = "i") -> RoundsLog:
    """Round n of epoch n // 2; the hash of a participant is its number."""
    log = RoundsLog(["a", "b"], identity)
    for number, hashes in enumerate(rounds):
        log.append(number, number // 2, number * 10, {n: bytes([h] * 16) for n, h in hashes.items()})
    return log


FIRST = log_of({"a": 1, "b": 2}, {"a": 3}, {"b": 4})


def test_file_gives_the_log_back() -> None:
    assert RoundsLog.unpack(FIRST.pack(), "x") == FIRST
    assert RoundsLog.unpack(log_of().pack(), "x") == log_of()


def test_first_difference() -> None:
    differ = "its messages or state differ"
    cases = [
        (log_of({"a": 1, "b": 2}, {"a": 3}, {"b": 4}), None),
        (log_of({"a": 9, "b": 9}, {"a": 3}, {"b": 4}), Difference(0, 0, 0, "a", differ)),
        (log_of({"a": 1, "b": 9}, {"a": 9}, {"b": 4}), Difference(0, 0, 0, "b", differ)),
        (log_of({"a": 1, "b": 2}, {"a": 3}, {"b": 9}), Difference(2, 1, 20, "b", differ)),
        (
            log_of({"a": 1, "b": 2}, {"a": 3, "b": 3}),
            Difference(1, 0, 10, "b", "it took a step in SECOND only"),
        ),
        (log_of({"a": 1}), Difference(0, 0, 0, "b", "it took a step in FIRST only")),
        (
            log_of({"a": 1, "b": 2}, {"a": 3}),
            Difference(2, 1, 20, "", "SECOND ends before this round, FIRST goes on"),
        ),
        (
            log_of({"a": 1, "b": 2}, {"a": 3}, {"b": 4}, {"b": 5}),
            Difference(3, 1, 30, "", "FIRST ends before this round, SECOND goes on"),
        ),
    ]
    for second, expected in cases:
        assert first_difference(FIRST, second) == expected


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (b"", "x: damaged at byte 0"),
        (b"\x01", "x: not a rounds log"),
        (FIRST.pack()[:-1], "x: damaged at byte"),
        (FIRST.pack() + b"\x01", "x: damaged at byte"),
        (
            FIRST.pack().replace(b"schema\x01", b"schema\x07"),
            "x: rounds log of schema 7; this privmem reads 1",
        ),
    ],
)
def test_damaged_logs_are_refused(packed: bytes, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RoundsLog.unpack(packed, "x")
    assert str(caught.value).startswith(text)


def test_diff_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    second = log_of({"a": 1, "b": 2}, {"a": 3}, {"b": 9}, identity="j")
    for folder, log in ((one, FIRST), (two, FIRST), (three, second)):
        folder.mkdir()
        (folder / "rounds.bin").write_bytes(log.pack())
    assert main(["diff", str(one), str(two)]) == 0
    assert capsys.readouterr().out == "equal: 3 rounds of 2 participants\n"
    assert main(["diff", str(one), str(three)]) == 1
    assert capsys.readouterr().out == (
        "note: the runs are not of the same configuration, seed and versions\n"
        "first difference: round 2, epoch 1, virtual time 20 ns (20 ns)\n"
        "b: its messages or state differ\n"
    )
    assert main(["diff", str(one), str(tmp_path / "four")]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path / 'four' / 'rounds.bin'}: cannot be read: No such file or directory\n"
    )
