"""Foreign traces: oracleGeneral and CSV, right and malformed, through the API and the verb."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import zstandard

from privmem.cluster.cli import import_trace
from privmem.cluster.errors import ConfigError, TraceError
from privmem.cluster.traces import open_trace
from privmem.cluster.traces_import import (
    LINE_BYTES_MAX,
    ORACLE_GENERAL,
    CsvColumns,
    import_csv,
    import_oracle_general,
)

OBJECTS = [1 << 60, 7, 1 << 60, (1 << 64) - 1, 7, 0]


def records(objects: list[int], nexts: list[int] | None = None) -> bytes:
    array = np.zeros(len(objects), ORACLE_GENERAL)
    array["object"] = np.array(objects, np.uint64)
    array["size"] = 4096
    array["next"] = -1 if nexts is None else nexts
    return array.tobytes()


def accesses_of(path: Path) -> list[int]:
    return open_trace(path).accesses().tolist()


def test_oracle_general_records_are_24_bytes_without_padding() -> None:
    assert ORACLE_GENERAL.itemsize == 24
    assert [ORACLE_GENERAL.fields[name][1] for name in ("time", "object", "size", "next")] == [0, 4, 12, 16]


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_oracle_general(tmp_path: Path, frames: int) -> None:
    text = records(OBJECTS)
    if frames:
        cut = len(text) // frames + 5
        text = zstandard.compress(text[:cut]) + (zstandard.compress(text[cut:]) if frames == 2 else b"")
    (tmp_path / "web.oracleGeneral").write_bytes(text)
    header = import_oracle_general(tmp_path / "web.oracleGeneral", tmp_path / "a.pmtrace")
    assert (header.name, header.nr_pages, header.nr_accesses, header.nr_images) == ("web", 4, 6, 0)
    assert accesses_of(tmp_path / "a.pmtrace") == [0, 2, 0, 4, 2, 6]
    import_oracle_general(tmp_path / "web.oracleGeneral", tmp_path / "b.pmtrace", "other", limit=2)
    assert accesses_of(tmp_path / "b.pmtrace") == [0, 2]


def test_numbering_goes_on_from_batch_to_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privmem.cluster.traces_import._RECORDS_AT_ONCE", 4)
    objects = [5, 3, 5, 9, 3, 1, 9, 0, 1, 5]
    (tmp_path / "s").write_bytes(records(objects))
    import_oracle_general(tmp_path / "s", tmp_path / "a.pmtrace")
    assert [a >> 1 for a in accesses_of(tmp_path / "a.pmtrace")] == [0, 1, 0, 2, 1, 3, 2, 4, 3, 0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "offset 0: holds no access, expected at least one"),
        (records([1, 2])[:-1], "offset 47: file ends inside a record of 24 bytes"),
        (records([1, 2, 3], [-1, 5, -3]), "offset 64: next access -3, expected -2 or more"),
        (
            zstandard.compress(records(OBJECTS))[:-1],
            "offset 0 of the decompressed text: file ends inside a zstd frame",
        ),
        (
            b"\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff\xff",
            "offset 0 of the decompressed text: ",
        ),
        (
            zstandard.compress(records([1])) + b"more",
            "offset 0 of the decompressed text: cannot be decompressed: ",
        ),
    ],
)
def test_damaged_oracle_general(tmp_path: Path, content: bytes, said: str) -> None:
    source = tmp_path / "s"
    source.write_bytes(content)
    with pytest.raises(TraceError) as caught:
        import_oracle_general(source, tmp_path / "a.pmtrace")
    assert str(caught.value).startswith(f"{source}: {said}")
    assert not (tmp_path / "a.pmtrace").exists()


BY_NUMBER = CsvColumns(page=1, operation=2)


@pytest.mark.parametrize(
    ("columns", "text", "expected"),
    [
        (BY_NUMBER, "9,r\n4,w\n9,W\n", [0, 3, 1]),
        (BY_NUMBER, "9,r\r\n\r\n4, store \r\n", [0, 3]),
        (CsvColumns(page=2), "a,9\nb,4\nc,9", [0, 2, 0]),
        (CsvColumns(page=1, names=True), "page\n3\n", [0]),
        (
            CsvColumns(address="addr", operation="op"),
            "\ufeffop,addr\nget,0x1fff\nset,4096\n0,8192\n",
            [0, 1, 2],
        ),
        (CsvColumns(address=1, delimiter="\t"), "0xFFFFFFFFFFFFFFFF\tx\n0\tx\n", [0, 2]),
        (BY_NUMBER, '"9","r"\n', [0]),
    ],
)
def test_csv(tmp_path: Path, columns: CsvColumns, text: str, expected: list[int]) -> None:
    (tmp_path / "s.csv").write_text(text, newline="")
    header = import_csv(tmp_path / "s.csv", tmp_path / "a.pmtrace", columns)
    assert header.name == "s"
    assert accesses_of(tmp_path / "a.pmtrace") == expected


@pytest.mark.parametrize(
    ("columns", "text", "said"),
    [
        (BY_NUMBER, b"1,r\n2,q\n", "line 2: 'q' is no operation, expected r or w"),
        (BY_NUMBER, b"1,r\n2\n", "line 2: has 1 columns, expected at least 2"),
        (BY_NUMBER, b"1,r\n-2,r\n", "line 2: '-2' is no number, expected decimal or 0x... below 2^64"),
        (BY_NUMBER, b"1_0,r\n", "line 1: '1_0' is no number"),
        (BY_NUMBER, b"0x,r\n", "line 1: '0x' is no number"),
        (BY_NUMBER, b"page,op\n1,r\n", "line 1: 'page' is no number"),
        (BY_NUMBER, b"18446744073709551616,r\n", "line 1: 18446744073709551616 is too large"),
        (BY_NUMBER, b"1,r\n" + b"9" * (LINE_BYTES_MAX + 1), f"line 2: longer than {LINE_BYTES_MAX} bytes"),
        (BY_NUMBER, b"1,r\n\xff,r\n", "line 2: is not UTF-8 text"),
        (BY_NUMBER, b'1,r\n"2,r\n', "line 2: unexpected end of data"),
        (
            CsvColumns(page="pg"),
            b"page, op\n1,r\n",
            "line 1: no column 'pg', the first line names 'page', 'op'",
        ),
        (BY_NUMBER, b"", "offset 0: holds no access"),
        (CsvColumns(page="page"), b"page\n", "offset 0: holds no access"),
    ],
)
def test_malformed_csv(tmp_path: Path, columns: CsvColumns, text: bytes, said: str) -> None:
    source = tmp_path / "s.csv"
    source.write_bytes(text)
    with pytest.raises(TraceError) as caught:
        import_csv(source, tmp_path / "a.pmtrace", columns)
    assert str(caught.value).startswith(f"{source}: {said}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.pmtrace").exists()


def test_csv_of_one_endless_quoted_field(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text('"' + "abc\n" * 100_000)
    with pytest.raises(TraceError, match=r"line \d+: field larger than field limit"):
        import_csv(tmp_path / "s.csv", tmp_path / "a.pmtrace", BY_NUMBER)


def verb(*words: str) -> int:
    parser = argparse.ArgumentParser()
    import_trace.add_arguments(parser)
    return import_trace.run(parser.parse_args(words))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.csv").write_text("page,op\n9,r\n4,w\n9,w\n")
    target = tmp_path / "a.pmtrace"
    assert verb(str(tmp_path / "s.csv"), str(target), "--page", "page", "--op", "op", "--limit", "2") == 0
    assert capsys.readouterr().out == f"{target}: 2 accesses to 2 pages\n"
    assert accesses_of(target) == [0, 3]
    (tmp_path / "w.oracleGeneral").write_bytes(records(OBJECTS))
    assert verb(str(tmp_path / "w.oracleGeneral"), str(target), "--name", "web") == 0
    assert open_trace(target).header.name == "web"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["s.csv", "a.csv", "--page", "1"], "TARGET is 'a.csv', expected a name that ends in .pmtrace"),
        (["s.bin", "a.pmtrace"], "s.bin: the name does not tell the format"),
        (["s.csv", "a.pmtrace"], "give either the column of the page or that of the address"),
        (["s.csv", "a.pmtrace", "--page", "0"], "column 0: columns are counted from 1"),
        (["s.csv", "a.pmtrace", "--page", "1", "--delimiter", "ab"], "delimiter 'ab' is not one character"),
        (["s.csv", "a.pmtrace", "--page", "1", "--limit", "0"], "--limit is 0, expected at least 1"),
        (
            ["s.csv", "no/a.pmtrace", "--page", "1"],
            "no/a.pmtrace: cannot be written: No such file or directory",
        ),
    ],
)
def test_wrong_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.csv").write_text("1\n")
    with pytest.raises(ConfigError) as caught:
        verb(*words)
    assert str(caught.value).startswith(f"import-trace: {said}")
