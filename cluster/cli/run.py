"""`privmem run CONFIG`: emulate what a configuration says, and say where the results are."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from privmem.cluster.assembly import make_plan
from privmem.cluster.cli import add_plugin_argument
from privmem.cluster.config import Config, config_to_plain, load_config
from privmem.cluster.engine import RunResult
from privmem.cluster.errors import ConfigError
from privmem.cluster.folder import RunRecord, check_out
from privmem.cluster.progress import span
from privmem.cluster.results import summary_text, write_results
from privmem.cluster.results.table import format_table
from privmem.cluster.runner import Outcome, Runner, RunOptions, Write
from privmem.cluster.runtime import DEFAULT_RUNTIME, RUNTIMES
from privmem.nodeagent.host.story import EVENTS_MAX

STATUS_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("config", metavar="CONFIG", type=Path, help="configuration (YAML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help="override a field"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the run's seed, instead of the configuration's"
    )
    parser.add_argument(
        "--design", metavar="NAME", help="the isolation design, instead of the configuration's"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results (default: results/NAME)"
    )
    parser.add_argument(
        "--checkpoint-every", type=_count, default=0, metavar="N", help="write a checkpoint every N epochs"
    )
    parser.add_argument(
        "--story",
        type=_count,
        nargs="?",
        const=EVENTS_MAX,
        default=0,
        metavar="N",
        help="keep the story of every page for `privmem why`: the last N events of each host (%(const)s)",
    )
    add_run_arguments(parser)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say where to run and what to print: the same for `run` and `resume`."""
    parser.add_argument(
        "--runtime", choices=list(RUNTIMES), default=DEFAULT_RUNTIME, help="default: %(default)s"
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="with --runtime ray: join this Ray cluster")
    parser.add_argument(
        "--pack",
        type=_count,
        default=1,
        metavar="N",
        help="with --runtime ray: participants of a kind in one process (default: 1)",
    )
    add_plugin_argument(parser)
    parser.add_argument("--validate", action="store_true", help="recount all state after every epoch")
    parser.add_argument("--json", action="store_true", help="print the summary alone, as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run(args: argparse.Namespace) -> int:
    """Run it. 130 when it was interrupted."""
    check_arguments(args)
    check_out(args.out)
    config = load_config(args.config, args.overrides, args.seed, args.design, args.plugins)
    plan = make_plan(config, args.story)
    folder = str(config.folder.resolve())
    record = RunRecord(config.name, config_to_plain(config), folder, args.checkpoint_every, args.story)
    runner = Runner(plan, record, options_of(args, args.checkpoint_every), writer(config))
    return report(runner.run(out=args.out), as_json=args.json)


def check_arguments(args: argparse.Namespace) -> None:
    """What argparse cannot say."""
    if args.runtime != "ray" and (args.address is not None or args.pack != 1):
        raise ConfigError("--address and --pack: only with --runtime ray")


def options_of(args: argparse.Namespace, checkpoint_every: int) -> RunOptions:
    """Options of the run from the arguments of the command line."""
    return RunOptions(
        runtime=args.runtime,
        address=args.address,
        pack=args.pack,
        checkpoint_every=checkpoint_every,
        validate=args.validate,
        quiet=args.quiet,
    )


def writer(config: Config) -> Write:
    """Writes results, with a copy of the configuration in which recordings are relative to the folder."""

    def write(path: Path, result: RunResult) -> None:
        write_results(path, result, config_to_plain(config, path))

    return write


def report(outcome: Outcome, *, as_json: bool) -> int:
    """Print how a run ended; returns the exit status."""
    summary = outcome.result.summary
    if as_json:
        print(summary_text(summary), end="")
        if not outcome.interrupted:
            print(f"results: {outcome.path}", file=sys.stderr)
    elif not outcome.interrupted:
        print(format_table(summary))
        print_end(outcome.path, outcome.result.digest)
    if not outcome.interrupted:
        return 0
    at = span(summary["virtual_ns"])
    print(f"interrupted at {at} of virtual time", file=sys.stderr)
    print(f"partial results: {outcome.path}", file=sys.stderr)
    print(f"to go on: privmem resume {shlex.quote(str(outcome.path))}", file=sys.stderr)
    return STATUS_INTERRUPTED


def print_end(path: Path, digest: str) -> None:
    """The last two lines of a run."""
    print(f"results: {path}")
    print(f"digest: {digest}")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text}; allowed: 1 or more")
    return value
