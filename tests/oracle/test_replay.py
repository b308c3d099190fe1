"""`privmem oracle`: what it prints, its exit status, its unknowns, and files that are wrong."""

from __future__ import annotations

import gzip
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privmem.cluster import cli
from privmem.cluster.errors import InvariantError, TraceError
from privmem.cluster.oracle import replay as replay_module
from privmem.cluster.oracle.machine import _METHODS, Machine
from privmem.cluster.oracle.ops import OPS, parse_op
from privmem.cluster.oracle.recording import read_recording
from privmem.cluster.oracle.replay import Disagreement, Verdict, replay


def line(name: str = "p", kernel: str = "6.1.176", **pairs: Any) -> str:
    return json.dumps({"name": name, "kernel": kernel, **pairs})


def write(path: Path, *programs: list[tuple[str, str]]) -> Path:
    """A recording of programs given as (op, result) pairs."""
    lines = [
        line(f"p{n}", ops=[op for op, _ in program], results=[result for _, result in program])
        for n, program in enumerate(programs)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def verdict_of(tmp_path: Path, *pairs: tuple[str, str], **machine: str) -> Verdict:
    (program,) = read_recording(write(tmp_path / "r.jsonl", list(pairs)))
    return replay(replace(program, machine=machine), validate=True)


TOUCHED = [("cpu 1", "cpu 0"), ("mmap 0 4 pa", "mmap 0"), ("touch 0 0 3 w", "touch 0")]
RIGHT = [*TOUCHED, ("where 0 0 4", "where 0 1*3,-14*1")]
WRONG = [*TOUCHED, ("where 0 0 4", "where 0 1*4"), ("getpol", "getpol 7 7 7")]


#: Ops for trying things on a real kernel, whose answers vary from run to run; the emulator has none for them.
NOT_EMULATED = ["free", "delta"]


def test_every_other_op_has_a_method() -> None:
    names = [name for name in OPS if not callable(getattr(Machine, _METHODS.get(name, name), None))]
    assert names == NOT_EMULATED


@pytest.mark.parametrize("op", ["free 0", "delta pgalloc_normal"])
def test_an_op_without_a_method_is_told(tmp_path: Path, op: str) -> None:
    assert verdict_of(tmp_path, (op, "")).refused == f"ops[0]: {op!r}: not emulated: the op {op.split()[0]}"


@pytest.mark.parametrize(
    ("pairs", "refused"),
    [
        ({"kernel": "6.12.117"}, ""),
        ({"kernel": "6.5.2"}, "not emulated: Linux 6.5.2; this emulator is Linux 6.1 and 6.12"),
        ({"kernel": "5.10"}, "not emulated: Linux 5.10 is older than 6.1, the oldest whose rules are here"),
        ({"machine": {"read_ahead_kb": 128}}, ""),
        ({"machine": {"read_ahead_kb": 0, "slow_nodes": 0}}, ""),
    ],
)
def test_other_machines(tmp_path: Path, pairs: dict[str, Any], refused: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(line(ops=["cpu 0"], results=["cpu 0"], **pairs))
    assert [replay(program).refused for program in read_recording(file)] == [refused]


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
def test_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str], pack: bool) -> None:
    file = write(tmp_path / "r.jsonl", RIGHT, RIGHT)
    if pack:
        file.write_bytes(gzip.compress(file.read_bytes()))
    assert cli.main(["oracle", str(file), str(file), "--validate"]) == 0
    assert capsys.readouterr() == ("agreed 4 of 4 programs\n", "")


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
def test_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pack: bool
) -> None:
    """Beside a file, with a byte order mark and a character that some take for the end of a line."""
    file = write(tmp_path / "r.jsonl", WRONG)
    content = b"\xef\xbb\xbf" + file.read_bytes().replace(b'"p0"', '"p\u2028"'.encode())
    stdin = io.TextIOWrapper(io.BytesIO(gzip.compress(content) if pack else content))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert cli.main(["oracle", str(file), "-"]) == 1
    lines = capsys.readouterr().out.split("\n")
    assert [lines[0], lines[3], lines[6]] == [
        f"{file}:1: program p0, op 3: where 0 0 4",
        "<stdin>:1: program p\u2028, op 3: where 0 0 4",
        "agreed 0 of 2 programs",
    ]
    assert cli.main(["oracle", "-"]) == 2
    assert capsys.readouterr() == ("", "<stdin>: holds no program\n")


def test_the_first_disagreement_of_each_program_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "r.jsonl", WRONG, RIGHT)
    assert cli.main(["oracle", str(file)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{file}:1: program p0, op 3: where 0 0 4",
        "  expected: where 0 1*4",
        "  got:      where 0 1*3,-14*1",
        "agreed 1 of 2 programs",
    ]


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "r.jsonl", RIGHT, WRONG)
    assert cli.main(["oracle", "--json", str(file)]) == 1
    disagreement = {"number": 3, "op": "where 0 0 4", "expected": "where 0 1*4", "got": "where 0 1*3,-14*1"}
    assert json.loads(capsys.readouterr().out) == {
        "agreed": 1,
        "programs": 2,
        "verdicts": [
            {"file": str(file), "line": 1, "program": "p0", "agrees": True},
            {"file": str(file), "line": 2, "program": "p1", "agrees": False, **disagreement},
        ],
    }


def shared(answers: str, cpu: int = 0) -> list[tuple[str, str]]:
    """A program whose answer depends on the inode number: 1 starts at node 1, 4 at node 0."""
    return [
        (f"cpu {cpu}", "cpu 0"),
        ("mmap 0 4 sa", "mmap 0"),
        ("setpol 3 0,1,2,3", "setpol 0"),
        ("touch 0 0 4 w", "touch 0"),
        ("where 0 0 4", f"where 0 {answers}"),
    ]


def test_the_inode_number_is_inferred(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "r.jsonl", shared("1*1,2*1,3*1,0*1"), shared("0*1,1*1,2*1,3*1"), RIGHT)
    assert [replay(program).inodes for program in read_recording(file)] == [((0, 1),), ((0, 4),), ()]
    assert cli.main(["oracle", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "unknown of the recording: in 2 programs that interleave and share memory, the first inode number "
        "(modulo 12) was inferred",
        "agreed 3 of 3 programs",
    ]


def test_each_cpu_counts_its_own_inodes(tmp_path: Path) -> None:
    more = [("cpu 1", "cpu 0"), ("mmap 1 4 sa", "mmap 0"), ("touch 1 0 4 w", "touch 0")]
    verdict = verdict_of(
        tmp_path, *shared("2*1,3*1,0*1,1*1"), *more, ("where 1 0 4", "where 0 3*1,0*1,1*1,2*1")
    )
    assert (verdict.agrees, verdict.inodes) == (True, ((0, 2), (1, 3)))


def test_one_number_must_explain_all_answers(tmp_path: Path) -> None:
    """The second mapping of a program has the next number, and no other."""
    more = [("mmap 1 4 sa", "mmap 0"), ("touch 1 0 4 w", "touch 0")]
    good, bad = ("where 1 0 4", "where 0 3*1,0*1,1*1,2*1"), ("where 1 0 4", "where 0 0*1,1*1,2*1,3*1")
    first = shared("2*1,3*1,0*1,1*1")
    assert verdict_of(tmp_path, *first, *more, good).inodes == ((0, 2),)
    verdict = verdict_of(tmp_path, *first, *more, bad)
    assert verdict.disagreement == Disagreement(7, bad[0], bad[1], good[1])
    assert verdict.inodes == ((0, 2),)  # of all numbers, this one goes furthest


def test_what_the_emulator_cannot_do_is_no_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "r.jsonl", [*TOUCHED, ("free 0", "free 77")], RIGHT)
    assert cli.main(["oracle", str(file)]) == 2
    assert capsys.readouterr() == (
        "agreed 1 of 2 programs\n",
        f"{file}:1: program p0: ops[3]: 'free 0': not emulated: the op free\n",
    )


def test_a_fault_of_the_emulator_is_told_with_its_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(machine: Machine, *args: object) -> int:
        raise KeyError("frame")

    monkeypatch.setattr(Machine, "touch", fail)
    found = verdict_of(tmp_path, *RIGHT).disagreement
    assert found == Disagreement(2, "touch 0 0 3 w", "touch 0", "KeyError: 'frame'")


def test_validate_recounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(memory: object) -> None:
        raise InvariantError("lost a frame")

    monkeypatch.setattr(replay_module, "validate_memory", broken)
    with pytest.raises(InvariantError, match="lost a frame"):
        verdict_of(tmp_path, *RIGHT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("where 0 0", "'where 0 0': 2 arguments, expected 3: where region offset pages"),
        ("where 0 0 4 4", "'where 0 0 4 4': 4 arguments, expected 3: where region offset pages"),
        ("where 64 0 1", "'where 64 0 1': region: found 64; allowed: 0 to 63"),
        ("where 0 -1 1", "'where 0 -1 1': offset: found -1; allowed: 0 to 262143"),
        ("where 0 0 x", "'where 0 0 x': pages: found 'x'; allowed: an integer"),
        ("mmap 0 4 ps", "'mmap 0 4 ps': kind: found 'ps'; allowed: pa, sa"),
        ("setpol 3 0;1", "'setpol 3 0;1': nodes: '0;1' is not a node list such as 0,2-4"),
        ("fread 4 0 1", "'fread 4 0 1': file: found 4; allowed: 0 to 3"),
        ("moves 0 0 4 1,x 2", "'moves 0 0 4 1,x 2': nodes: found 'x'; allowed: an integer"),
        ("frobnicate", f"'frobnicate': no such op; allowed: {', '.join(OPS)}"),
        ("", f"'': no such op; allowed: {', '.join(OPS)}"),
    ],
)
def test_wrong_ops(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_op(text)
    assert str(caught.value) == message


def test_ops_are_typed() -> None:
    assert parse_op("mbind 0 10 49 16384 0,2 0").args == (0, 10, 49, 16384, 0b101, 0)
    assert parse_op("move 1 2 3 -1 6").args == (1, 2, 3, -1, 6)
    assert parse_op("migrate - 0-3").args == (0, 0b1111)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (line(ops=["drop"]), ["results: missing"]),
        (line(ops=["drop"], results=[]), ["results: 0 for 1 ops, expected one for each"]),
        (line(ops=["drop", 7], results=["drop 0", "x"]), ["ops[1]: expected a string, found a number"]),
        (line(ops="drop", results=[]), ["ops: expected a list of strings, found a string"]),
        (line(kernel=6.1, ops=[], results=[]), ["kernel: expected a string, found a number"]),  # type: ignore[arg-type]
        (
            line(ops=[], results=[], cpus=2),
            ["cpus: no such field; allowed: name, kernel, ops, results, machine"],
        ),
        (line(ops=[], results=[], machine=[]), ["machine: expected an object, found a list"]),
        (
            line(ops=[], results=[], machine={"swap": 1, "cpus": 2}),
            [
                "machine.swap: expected a string, found a number",
                "machine.cpus: no such setting; allowed: read_ahead_kb, fault_around_bytes, swap, page_cluster, "
                "slow_nodes, demotion_enabled",
            ],
        ),
        (
            line("x7", ops=["cpu 0", "cpu 9"], results=["", ""]),
            ["ops[1]: program x7: 'cpu 9': cpu: found 9; allowed: 0 to 1"],
        ),
        (
            line(
                ops=[],
                results=[],
                machine={"slow_nodes": 3, "read_ahead_kb": 10**30, "fault_around_bytes": 5000, "swap": "x"},
            ),
            [
                "machine.slow_nodes: found 3; allowed: 0 to 2",
                f"machine.read_ahead_kb: found {10**30}; allowed: 0 to 1048576 in steps of 4",
                "machine.fault_around_bytes: found 5000; allowed: 4096, 8192, 16384, 32768, 65536, 131072, 262144, "
                "524288, 1048576, 2097152",
                "machine.swap: found 'x'; allowed: none, ram, disk",
            ],
        ),
        (
            line("\ud800", ops=["drop"], results=["\udfff"]),
            ["name: half a character (a lone surrogate)", "results[0]: half a character (a lone surrogate)"],
        ),
        ("[" * 100_000, ["no JSON that can be read: nested too deeply"]),
        (
            line(ops=["setpol 2 0-99999999999"], results=[""]),
            [
                "ops[0]: program p: 'setpol 2 0-99999999999': nodes: '0-99999999999' is not a range of nodes "
                "below 64"
            ],
        ),
        ("[]", ["expected an object with name, kernel, ops, results, found a list"]),
        ("{", ["no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"]),
    ],
)
def test_wrong_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, messages: list[str]
) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(line(ops=[], results=[]) + "\n\n" + text + "\n")
    assert cli.main(["oracle", str(file)]) == 2
    assert capsys.readouterr() == ("", "".join(f"{file}:3: {message}\n" for message in messages))


def test_wrong_files_are_all_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, cut, binary = tmp_path / "empty", tmp_path / "cut.gz", tmp_path / "binary"
    empty.write_text("\n")
    cut.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    binary.write_bytes(b"\xff\xfe")
    files = [tmp_path / "none", tmp_path, empty, cut, binary]
    assert cli.main(["oracle", *map(str, files)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{files[0]}: cannot be read: No such file or directory",
        f"{files[1]}: cannot be read: Is a directory",
        f"{empty}: holds no program",
        f"{cut}: cannot be read: Compressed file ended before the end-of-stream marker was reached",
        f"{binary}: cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ]


def test_a_long_list_of_mistakes_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text("{}\n" * 6)
    with pytest.raises(TraceError) as caught:
        read_recording(file)
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[0], lines[-1]) == (
        21,
        f"{file}:1: name: missing",
        f"{file}: and 4 more mistakes",
    )


@pytest.mark.parametrize(
    ("drops_on", "answer"), [(1, "faults 1 31"), (0, "faults 0 32")], ids=["another-cpu", "own-cpu"]
)
def test_a_batch_of_another_cpu_keeps_its_page_in_the_cache(
    tmp_path: Path, drops_on: int, answer: str
) -> None:
    """As recorded: `drop_caches` drains the LRU batch of its own CPU alone, and a page of a batch stays."""
    pairs = [
        ("cpu 0", "cpu 0"),
        ("drop", "drop 0"),
        ("fmap 2 1 32 fp", "fmap 0"),
        ("fread 1 17 1", "fread 1"),
    ]
    pairs += [(f"cpu {drops_on}", "cpu 0"), ("drop", "drop 0"), ("faults 2 0 32 r", answer)]
    assert verdict_of(tmp_path, *pairs).disagreement is None


def test_a_shared_policy_that_no_node_of_the_cpuset_is_in(tmp_path: Path) -> None:
    """As recorded: a cpuset rebinds no policy of an object, and PREFERRED_MANY falls back to any node."""
    pairs = [("cpu 0", "cpu 0"), ("mmap 2 64 sa", "mmap 0"), ("mbind 2 26 4 5 1,2 0", "mbind 0")]
    pairs += [("cpuset 0", "cpuset 0"), ("touch 2 0 64 w", "touch 0"), ("where 2 0 64", "where 0 0*64")]
    assert verdict_of(tmp_path, *pairs).disagreement is None


def test_ops_that_look(tmp_path: Path) -> None:
    """Answers as recorded, of ops that change nothing."""
    pairs = [*TOUCHED, ("ptes 0 0 4", "ptes 1*3,0*1"), ("try 0 2 4 w", "try 0*2,11*2")]
    pairs += [("order 0 0 4", "order 0 1"), ("query 1", "query -22 0 -"), ("queryat 3 0 1", "queryat 0 1 -")]
    pairs += [("moves 0 0 4 0,9,1 2", "moves -19 0*1,-999*3")]
    pairs += [("drop", "drop 0"), ("fread 0 2 2", "fread 2"), ("incore 0 0 8", "incore 0*2,1*2,0*4")]
    pairs += [
        ("cached 0 0 8", "cached -2*2,1*2,-2*4"),
        ("fmap 1 1 40 fs", "fmap 0"),
        ("try 1 31 2 r", "try 0*1,7*1"),
    ]
    assert verdict_of(tmp_path, *pairs).disagreement is None


def test_a_held_page_is_not_moved(tmp_path: Path) -> None:
    pairs = [*TOUCHED, ("hold", "hold 0"), ("move 0 0 3 2 2", "move 0 -13*3")]
    pairs += [("release", "release 0"), ("move 0 0 3 2 2", "move 0 2*3")]
    assert verdict_of(tmp_path, *pairs).disagreement is None


def test_a_page_of_two_tasks_is_moved_for_each(tmp_path: Path) -> None:
    """As recorded: a change of the cpuset takes 0 to 2 and 2 to 3 with each task, the child of `hold` too."""
    pairs = [("cpu 0", "cpu 0"), ("mmap 0 1 pa", "mmap 0"), ("cpuset 0,2", "cpuset 0")]
    pairs += [("touch 0 0 1 w", "touch 0"), ("hold", "hold 0"), ("cpuset 2,3", "cpuset 0")]
    assert verdict_of(tmp_path, *pairs, ("where 0 0 1", "where 0 3*1")).disagreement is None


def test_pages_given_away_are_copied_when_their_batch_holds_them(tmp_path: Path) -> None:
    """As recorded: MADV_FREE puts 15 pages at a time on their way; the last three of 33 are held, and after a
    fork a write copies them.
    """
    pairs = [("cpu 0", "cpu 0"), ("mmap 0 33 pa", "mmap 0"), ("touch 0 0 33 w", "touch 0")]
    pairs += [("forkwrite 0 13 1", "forkwrite 0 | child where 0 0*1"), ("setpol 2 3", "setpol 0")]
    pairs += [("madvise 0 0 33 8", "madvise 0"), ("touch 0 0 33 w", "touch 0")]
    assert verdict_of(tmp_path, *pairs, ("where 0 0 33", "where 0 0*30,3*3")).disagreement is None


def test_shared_memory_that_was_only_read_is_not_swapped(tmp_path: Path) -> None:
    """As recorded: its pages are forgotten, so that a fault makes new ones; the two that were written are read."""
    pairs = [("cpu 0", "cpu 0"), ("mmap 0 16 sa", "mmap 0"), ("touch 0 6 2 w", "touch 0")]
    pairs += [
        ("faults 0 0 16 r", "faults 14 0"),
        ("reclaim 1000", "reclaim -11"),
        ("faults 0 0 16 w", "faults 14 2"),
    ]
    assert verdict_of(tmp_path, *pairs, swap="ram").disagreement is None


def test_filled_nodes_are_passed_over(tmp_path: Path) -> None:
    pairs = [
        ("cpu 0", "cpu 0"),
        ("fill 0 512", "fill 0"),
        ("fill 1 512", "fill 0"),
        ("mmap 0 3000 pa", "mmap 0"),
    ]
    pairs += [("touch 0 0 3000 w", "touch 0"), ("order 0 0 3000", "order 0 0,1,2"), ("unfill", "unfill 0")]
    assert verdict_of(tmp_path, *pairs).disagreement is None


def test_pages_on_their_way_to_the_active_list_are_not_dropped(tmp_path: Path) -> None:
    """As recorded: what CPU 0 has read twice waits in its `activate` batch, beside the last pages it brought."""
    pairs = [
        ("cpu 0", "cpu 0"),
        ("drop", "drop 0"),
        ("fmap 0 1 32 fp", "fmap 0"),
        ("faults 0 27 2 w", "faults 0 2"),
    ]
    pairs += [
        ("fread 1 0 32", "fread 32"),
        ("fread 1 0 12", "fread 12"),
        ("cpu 1", "cpu 0"),
        ("drop", "drop 0"),
    ]
    pairs += [("faults 0 0 32 w", "faults 16 14"), ("where 0 0 32", "where 0 1*27,0*2,1*3")]
    assert verdict_of(tmp_path, *pairs).disagreement is None


def test_long_answers_are_shown_from_where_they_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = ["0*1", "1*1"] * 100
    right = ",".join(nodes)
    wrong = ",".join([*nodes[:100], "3*1", *nodes[101:]])
    pairs = [("cpu 0", "cpu 0"), ("mmap 0 200 pa", "mmap 0"), ("setpol 3 0,1", "setpol 0")]
    pairs += [("touch 0 0 200 w", "touch 0"), ("where 0 0 200", f"where 0 {wrong}")]
    assert cli.main(["oracle", str(write(tmp_path / "r.jsonl", pairs))]) == 1
    expected, got = capsys.readouterr().out.splitlines()[1:3]
    at = len("where 0 ") + 400 - 40
    assert expected == f"  expected: ...{f'where 0 {wrong}'[at : at + 160]}..."
    assert got == f"  got:      ...{f'where 0 {right}'[at : at + 160]}..."
