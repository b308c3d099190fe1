"""`privmem validate FILE...`: every mistake of every file, or `FILE: ok`."""

from __future__ import annotations

import argparse
import sys

from privmem.cluster.cli import add_plugin_argument
from privmem.cluster.config import load_config
from privmem.cluster.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="configuration to check")
    add_plugin_argument(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help="override a field"
    )


def run(args: argparse.Namespace) -> int:
    """Check all files, whatever the first ones hold. 2 when one of them is wrong."""
    status = 0
    for file in args.files:
        try:
            load_config(file, args.overrides, plugins=args.plugins)
            print(f"{file}: ok")
        except ConfigError as error:
            print(error, file=sys.stderr)
            status = 2
    return status
