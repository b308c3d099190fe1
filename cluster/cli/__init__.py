"""The command line: `privmem VERB ...`. One module per verb, with `add_arguments(parser)` and `run(args) ->
status`.

Only the module of the verb that was asked for is imported, so that `privmem --help` and a misspelt verb
answer at once. Exit status: 0 done, 1 the run failed, 2 the user's files or command line are wrong, 130
interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from privmem.cluster.errors import CheckpointError, ConfigError, PrivmemError, TraceError

#: Verb: its module under `privmem.cluster.cli`, and what `privmem --help` says about it.
VERBS: dict[str, tuple[str, str]] = {
    "run": ("run", "emulate what a configuration says"),
    "resume": ("resume", "go on from a checkpoint"),
    "validate": ("validate", "check configurations, start nothing"),
    "topo": ("topo", "print the hosts of a configuration as `numactl -H` would"),
    "schema": ("schema", "print the JSON schema of configurations, for editors"),
    "diff": ("diff", "find the first round and participant in which two runs differ"),
    "litmus": ("litmus", "run litmus tests under isolation designs, side by side"),
    "audit": ("audit", "what ordinary kernel activity does to private nodes, by isolation design"),
    "why": ("why", "tell the story of a page of a litmus test"),
    "oracle": ("oracle", "replay what a real Linux answered, and compare every answer"),
    "import-trace": ("import_trace", "convert a foreign trace to a .pmtrace file"),
}

STATUS_FAILED = 1
STATUS_WRONG = 2
STATUS_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `privmem` command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        status = importlib.import_module(f"privmem.cluster.cli.{VERBS[args.verb][0]}").run(args)
        sys.stdout.flush()
        return int(status)
    except (ConfigError, TraceError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return STATUS_WRONG
    except PrivmemError as error:
        print(f"privmem: {type(error).__name__}: {error}", file=sys.stderr)
        return STATUS_FAILED
    except BrokenPipeError:
        # Whoever read our output has left (`privmem topo FILE | head`). Nothing more can be said to them,
        # also not by the interpreter, which flushes standard output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_FAILED
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED


def add_plugin_argument(parser: argparse.ArgumentParser) -> None:
    """For verbs that read a configuration."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        dest="plugins",
        help="a Python file with device classes of your own; it is run",
    )


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser, with the arguments of the one verb that `arguments` name."""
    parser = argparse.ArgumentParser(
        prog="privmem",
        description="Emulates private memory nodes and shared memory pools, deterministically.",
    )
    parser.add_argument("--version", action="version", version=f"privmem {metadata.version('privmem')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    for verb, (module, help_text) in VERBS.items():
        below = verbs.add_parser(verb, help=help_text, description=f"{help_text[:1].upper()}{help_text[1:]}.")
        if verb == asked:
            importlib.import_module(f"privmem.cluster.cli.{module}").add_arguments(below)
    return parser
