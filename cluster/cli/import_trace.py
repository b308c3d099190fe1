"""`privmem import-trace SOURCE TARGET`: convert a foreign trace (oracleGeneral or CSV) to a `.pmtrace` file."""

from __future__ import annotations

import argparse
from pathlib import Path

from privmem.cluster.errors import ConfigError
from privmem.cluster.traces import TraceHeader
from privmem.cluster.traces_import import CsvColumns, import_csv, import_oracle_general
from privmem.cluster.traces_layout import ACCESSES_MAX

_ORACLE_GENERAL = "oracle-general"
_CSV = "csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("source", metavar="SOURCE", help="the foreign trace")
    parser.add_argument("target", metavar="TARGET", help="the file to write; its name ends in .pmtrace")
    parser.add_argument(
        "--format", choices=(_ORACLE_GENERAL, _CSV), help="format of SOURCE; else its name must tell"
    )
    parser.add_argument("--name", default="", help="name for the header; default: the name of SOURCE")
    parser.add_argument(
        "--limit", type=int, default=ACCESSES_MAX, metavar="N", help="take only the first N accesses"
    )
    column = "column, by number from 1 or by its name in the first line"
    parser.add_argument("--page", metavar="COLUMN", help=f"CSV: {column}, that holds page numbers")
    parser.add_argument("--address", metavar="COLUMN", help=f"CSV: {column}, that holds byte addresses")
    parser.add_argument("--op", metavar="COLUMN", help=f"CSV: {column}, that says r or w; default: all reads")
    parser.add_argument(
        "--delimiter", default=",", metavar="CHAR", help="CSV: what parts columns; default: ,"
    )
    parser.add_argument("--skip-first-line", action="store_true", help="CSV: the first line holds names")


def run(args: argparse.Namespace) -> int:
    """Import, and print one line about the result. Raises ConfigError and TraceError."""
    source, target = Path(args.source), Path(args.target)
    if target.suffix != ".pmtrace":
        raise ConfigError(f"import-trace: TARGET is {str(target)!r}, expected a name that ends in .pmtrace")
    if args.limit < 1:
        raise ConfigError(f"import-trace: --limit is {args.limit}, expected at least 1")
    try:
        header = _import(args, source, target)
    except OSError as error:  # those of the source are TraceErrors
        raise ConfigError(f"import-trace: {target}: cannot be written: {error.strerror}") from None
    print(f"{target}: {header.nr_accesses} accesses to {header.nr_pages} pages")
    return 0


def _import(args: argparse.Namespace, source: Path, target: Path) -> TraceHeader:
    if _format_of(args.format, source) == _ORACLE_GENERAL:
        return import_oracle_general(source, target, args.name, args.limit)
    try:
        columns = CsvColumns(
            _column(args.page), _column(args.address), _column(args.op), args.delimiter, args.skip_first_line
        )
    except ValueError as error:
        raise ConfigError(f"import-trace: {error} (--page, --address, --op, --delimiter)") from None
    return import_csv(source, target, columns, args.name, args.limit)


def _format_of(stated: str | None, source: Path) -> str:
    if stated is not None:
        return stated
    if source.suffix == ".csv":
        return _CSV
    if "oraclegeneral" in source.name.lower():
        return _ORACLE_GENERAL
    raise ConfigError(
        f"import-trace: {source}: the name does not tell the format, say --format csv or oracle-general"
    )


def _column(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else text
