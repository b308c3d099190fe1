"""`privmem resume DIR`: go on with a run that was killed, interrupted or failed, from its newest checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from privmem.cluster.assembly import make_plan
from privmem.cluster.cli.run import add_run_arguments, check_arguments, options_of, print_end, report, writer
from privmem.cluster.config import config_from_plain
from privmem.cluster.engine import COMPLETE
from privmem.cluster.errors import ConfigError
from privmem.cluster.folder import RUN_FILE, RunFolder, read_record
from privmem.cluster.runner import Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="results folder of the run")
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="N",
        help="write a checkpoint every N epochs, 0 for none (default: as the run was started)",
    )
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Go on. A run that is complete says so and prints its digest."""
    check_arguments(args)
    record = read_record(args.folder)
    folder = RunFolder(args.folder)
    try:
        if record.status == COMPLETE:
            return _already_complete(args, record.digest)
        if args.checkpoint_every is not None:
            if args.checkpoint_every < 0:
                raise ConfigError(f"--checkpoint-every: found {args.checkpoint_every}; allowed: 0 or more")
            record.checkpoint_every = args.checkpoint_every
        config = config_from_plain(record.config, record.config_folder, args.plugins)
        plan = make_plan(config, record.story_events)
        runner = Runner(plan, record, options_of(args, record.checkpoint_every), writer(config))
        return report(runner.run(resumed=folder), as_json=args.json)
    finally:
        folder.release()


def _already_complete(args: argparse.Namespace, digest: str) -> int:
    if args.json:
        summary = args.folder / "summary.json"
        try:
            print(json.dumps(json.loads(summary.read_text()), indent=2))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{summary}: {RUN_FILE} says complete, but: {error}") from error
    else:
        print("the run is complete; nothing is left to do")
        print_end(args.folder, digest)
    return 0
