"""privmem litmus PATH...: run litmus tests under isolation designs, side by side."""

from __future__ import annotations

import argparse
import json
import sys

from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus.report import print_table, run_all
from privmem.cluster.litmus.script import find_scripts, load_script
from privmem.scheduler.isolation import select_designs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", help="litmus files, or folders of them")
    parser.add_argument(
        "--design",
        default="all",
        metavar="NAMES",
        help="designs with commas between them; all: the default variant of each; every: all variants",
    )
    parser.add_argument(
        "-k", dest="text", default="", metavar="TEXT", help="only files whose path holds this text"
    )
    parser.add_argument("-x", "--exitfirst", action="store_true", help="stop after the first failure")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="a line for every file, also where all is well"
    )


def run(args: argparse.Namespace) -> int:
    """0 when everything held, 1 when something did not, 2 when a file makes no sense."""
    try:
        designs = [design.name for design in select_designs(args.design)]
    except KeyError as error:
        raise ConfigError(f"--design: {error.args[0]}") from None
    paths = [path for path in find_scripts(args.paths) if args.text in str(path)]
    if not paths:
        raise ConfigError(f"-k: no file's path holds {args.text!r}")
    scripts, problems = [], []
    for path in paths:
        try:
            scripts.append(load_script(path))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    results = run_all(scripts, designs, args.exitfirst)
    if args.json:
        json.dump([result.plain() for result in results], sys.stdout, indent=2)
        print()
    else:
        print_table(results, designs, args.verbose)
    return 1 if any(result.reasons for result in results) else 0
