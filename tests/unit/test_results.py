"""The results folder: each file's content, equal runs give equal files, and nothing is ever half there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from privmem.cluster import results
from privmem.cluster.engine import RunResult
from privmem.cluster.errors import ConfigError
from privmem.cluster.results import load_results, write_results
from privmem.cluster.results.series import TABLES, natural, tables_of
from privmem.cluster.rounds import RoundsLog
from privmem.nodeagent.device.compression import COUNTS
from privmem.nodeagent.host.memory import NUMASTAT
from privmem.nodeagent.host.vmstat import EVENTS
from privmem.scheduler import plain
from privmem.scheduler.messages import Sample

CONFIG = {"schema": 1, "name": "tiny", "hosts": [{"name": "h0", "cpus": 2}]}
FILES = [
    "config.yaml",
    "device.parquet",
    "digests.json",
    "host.parquet",
    "host_node.parquet",
    "report.html",
    "scheduler.parquet",
    "summary.json",
]


def result_of(samples: list[Sample], **changes: Any) -> RunResult:
    summary = {
        "schema": 1,
        "name": "tiny",
        "seed": 7,
        "status": "complete",
        "digest": "ab" * 16,
        "identity": {"seed": 7},
        "virtual_ns": 10,
        "epochs": 2,
        "rounds": 3,
        "accesses": 5,
        "headline": {"pgfault": 3, "pgalloc": 3},
        "hosts": {},
        "devices": {},
        "scheduler": {},
    }
    log = RoundsLog(["device/d", "host/h0"], "id")
    log.append(0, 0, 0, {"host/h0": b"\x01" * 16, "device/d": b"\x02" * 16})
    log.append(1, 0, 5, {"host/h0": b"\x03" * 16})
    return RunResult("tiny", "complete", "ab" * 16, {"seed": 7}, summary | changes, samples, log)


def host_rows(*times_ns: int) -> list[Sample]:
    return [
        Sample("host", [{"epoch": n, "time_ns": at, "host": "host/h0", "accesses": 10 * n, "pgfault": n}])
        for n, at in enumerate(times_ns)
    ]


def test_all_files_and_what_is_in_them(tmp_path: Path) -> None:
    result = result_of(host_rows(5, 10))
    write_results(tmp_path, result, CONFIG)
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    text = (tmp_path / "summary.json").read_text()
    assert text == json.dumps(result.summary, indent=2, sort_keys=True) + "\n"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG
    assert json.loads((tmp_path / "digests.json").read_text()) == {
        "schema": 1,
        "status": "complete",
        "digest": "ab" * 16,
        "identity": plain.digest({"seed": 7}),
        "rounds": 2,
        "participants": {"device/d": "02" * 8, "host/h0": "03" * 8},
    }


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, result_of(host_rows(5, 10)), CONFIG)
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    result = result_of(host_rows(5, 10))
    write_results(tmp_path, result, CONFIG)
    read = load_results(tmp_path)
    assert (read.path, read.summary, read.config) == (tmp_path, result.summary, CONFIG)
    assert read.digests["digest"] == result.digest
    assert sorted(read.tables) == ["device", "host", "host_node", "scheduler"]
    assert {name: table.equals(read.tables[name]) for name, table in tables_of(result.samples).items()} == (
        dict.fromkeys(read.tables, True)
    )


def test_a_summary_that_is_no_json_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path, result_of([], accesses=float("nan")), CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, result_of(host_rows(5)), CONFIG)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_results(tmp_path, result_of(host_rows(5, 10)), CONFIG)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_folders_that_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a results folder that can be read"):
        load_results(tmp_path)
    write_results(tmp_path, result_of([], schema=2), CONFIG)
    with pytest.raises(ConfigError, match="of schema 2; this privmem reads 1"):
        load_results(tmp_path)
    (tmp_path / "host.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="not a results folder that can be read"):
        load_results(tmp_path)


def test_tables_have_their_columns_without_rows() -> None:
    tables = tables_of([])
    assert list(tables) == ["host", "host_node", "device", "scheduler"]
    assert tables["scheduler"].schema == pa.schema(
        [
            ("epoch", pa.int64()),
            ("time_ns", pa.int64()),
            ("device", pa.string()),
            ("host", pa.string()),
            ("granted_pages", pa.int64()),
            ("refused", pa.int64()),
        ]
    )
    assert {table.num_rows for table in tables.values()} == {0}


def test_rows_are_sorted_named_shortly_and_filled_with_null() -> None:
    late = {"epoch": 1, "time_ns": 20, "device": "pool", "host": "host/h1", "granted_pages": 4, "refused": 0}
    early = {"epoch": 0, "time_ns": 10, "device": "device/pool", "host": "host/h1", "granted_pages": 2}
    first = {"epoch": 0, "time_ns": 10, "device": "pool", "host": "host/h0", "refused": 1}
    table = tables_of([Sample("scheduler", [late]), Sample("scheduler", [early, first])])["scheduler"]
    assert table.to_pylist() == [
        first | {"host": "h0", "granted_pages": None},
        early | {"device": "pool", "host": "h1", "refused": None},
        late | {"host": "h1"},
    ]


def test_further_columns_and_tables_are_kept() -> None:
    row = {"epoch": 0, "time_ns": 1, "device": "d", "zeal": 3, "share": 0.5, "mode": "fast"}
    tables = tables_of([Sample("device", [row]), Sample("weather", [{"epoch": 0, "time_ns": 1, "rain": 2}])])
    assert tables["device"].column_names[-3:] == ["mode", "share", "zeal"]
    assert tables["device"].schema.field("share").type == pa.float64()
    assert tables["device"].select(["mode", "share", "zeal"]).to_pylist() == [
        {"mode": "fast", "share": 0.5, "zeal": 3}
    ]
    assert tables["weather"].to_pylist() == [{"epoch": 0, "time_ns": 1, "rain": 2}]


def test_names_sort_as_people_count() -> None:
    names = ["h10", "h2", "h1", "a", "h10.n1", "10", "9"]
    assert sorted(names, key=natural) == ["9", "10", "a", "h1", "h2", "h10", "h10.n1"]


def test_every_column_is_documented() -> None:
    """`docs/results.md` names each column that a participant sends."""
    text = (Path(__file__).parents[2] / "docs/results.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", text))
    sent = {column for keys, columns in TABLES.values() for column in (*keys, *columns)}
    assert sent | set(EVENTS) | set(NUMASTAT) | set(COUNTS) <= named
