"""The results folder of a run: written after it, read by whoever wants to know (DESIGN, section 9).

`docs/results.md` says what is in each file. Every file is written beside its name and renamed, so that none is
ever half there. No wall-clock time enters any of them: equal runs give equal files. `run.json`, `rounds.bin` and
checkpoints are written by the runner.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from privmem.cluster.errors import ConfigError
from privmem.cluster.results.stories import write_stories
from privmem.scheduler import plain

if TYPE_CHECKING:  # Arrow takes a while to load, and `privmem validate` needs none of it
    import pyarrow as pa

    from privmem.cluster.engine import RunResult

__all__ = ["Results", "load_results", "summary_text", "write_results"]

SUMMARY = "summary.json"
CONFIG = "config.yaml"
DIGESTS = "digests.json"
REPORT = "report.html"
SCHEMA = 1
_CONFIG_HEAD = (
    "# The configuration that was run, with every default. Paths are relative to the original's folder.\n"
)


@dataclass(frozen=True, slots=True)
class Results:
    """A results folder, read back."""

    path: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    digests: dict[str, Any]
    #: "host", "host_node", "device", "scheduler": time series as Arrow tables.
    tables: dict[str, pa.Table]

    def frame(self, table: str) -> Any:
        """A time series as a pandas DataFrame; needs pandas, which privmem does not."""
        return self.tables[table].to_pandas()


def write_results(folder: Path, result: RunResult, config_plain: dict[str, Any]) -> None:
    """Write all files of a run. `config_plain` is the effective configuration as plain data."""
    from privmem.cluster.results.report import render_report
    from privmem.cluster.results.series import tables_of, write_table

    tables = tables_of(result.samples)
    summary = write_stories(folder, result.summary)
    _write_text(folder / SUMMARY, summary_text(summary))
    _write_text(folder / CONFIG, _CONFIG_HEAD + yaml.safe_dump(config_plain, sort_keys=False))
    _write_text(folder / DIGESTS, _json(digests_of(result)))
    for name, table in tables.items():
        _replace(folder / f"{name}.parquet", partial(write_table, table))
    _write_text(folder / REPORT, render_report(summary, tables, config_plain))


def load_results(folder: str | os.PathLike[str]) -> Results:
    """Read a run's folder. Raises ConfigError when it is none."""
    import pyarrow as pa

    from privmem.cluster.results.series import TABLES, read_table

    path = Path(folder)
    try:
        summary, digests = (json.loads((path / name).read_text()) for name in (SUMMARY, DIGESTS))
        config = yaml.safe_load((path / CONFIG).read_text())
        names = sorted({*TABLES, *(file.stem for file in path.glob("*.parquet"))})
        tables = {name: read_table(path / f"{name}.parquet") for name in names}
    except (OSError, ValueError, yaml.YAMLError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: not a results folder that can be read: {error}") from error
    if summary.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path / SUMMARY}: of schema {summary.get('schema')!r}; this privmem reads {SCHEMA}"
        )
    return Results(path, summary, config, digests, tables)


def summary_text(summary: Mapping[str, Any]) -> str:
    """`summary.json`, to the byte."""
    return _json(summary)


def digests_of(result: RunResult) -> dict[str, Any]:
    """`digests.json`: the run's digest, and each participant's running hash after its last step."""
    last: dict[str, str] = {}
    for taken in result.rounds.rounds:
        last |= {name: running.hex() for name, running in taken.hashes.items()}
    return {
        "schema": SCHEMA,
        "status": result.status,
        "digest": result.digest,
        "identity": plain.digest(result.identity),
        "rounds": len(result.rounds.rounds),
        "participants": last,
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _write_text(path: Path, text: str) -> None:
    _replace(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Have a file written beside its name, then give it the name; after a failure nothing is left."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
