"""The results folder of a run: written after it, read by whoever wants to know (DESIGN, section 9).

summary.json, one Parquet file a time series, config.yaml (what exactly was run), digests.json, rounds.bin, report.html. Every
file is written beside its name and renamed, so that none is ever half there. No wall-clock time enters any of them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from privmem.cluster.engine import RunResult
from privmem.cluster.errors import ConfigError
from privmem.cluster.results.report import render_report
from privmem.cluster.results.series import TABLES, tables_of

SUMMARY = "summary.json"
CONFIG = "config.yaml"
DIGESTS = "digests.json"
ROUNDS = "rounds.bin"
REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Results:
    """A results folder, read back."""

    path: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    tables: dict[str, pa.Table]


def write_results(folder: Path, result: RunResult, config_plain: dict[str, Any]) -> None:
    """Write all files of a run. `config_plain` is the effective configuration as plain data."""
    tables = tables_of(result.samples)
    digests = {"digest": result.digest, "identity": result.identity}
    _write_text(folder / SUMMARY, json.dumps(result.summary, indent=2, sort_keys=True) + "\n")
    _write_text(folder / CONFIG, yaml.safe_dump(config_plain, sort_keys=False, allow_unicode=True))
    _write_text(folder / DIGESTS, json.dumps(digests, indent=2, sort_keys=True) + "\n")
    for name, table in tables.items():
        unfinished = folder / f".{name}.parquet.tmp"
        pq.write_table(table, unfinished, compression="zstd")
        os.replace(unfinished, folder / f"{name}.parquet")
    _write_text(folder / REPORT, render_report(result.summary, tables, config_plain))


def load_results(folder: str | os.PathLike[str]) -> Results:
    """Read a finished run's folder. Raises ConfigError when it is none."""
    path = Path(folder)
    try:
        summary = json.loads((path / SUMMARY).read_text())
        config = yaml.safe_load((path / CONFIG).read_text())
        tables = {name: pq.read_table(path / f"{name}.parquet") for name in TABLES}
    except (OSError, ValueError, yaml.YAMLError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: not a results folder that can be read: {error}") from error
    return Results(path, summary, config, tables)


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)
