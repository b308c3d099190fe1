"""`privmem schema`: the format of configurations, for editors (JSON schema) or for people (`--markdown`)."""

from __future__ import annotations

import argparse
import json

from privmem.cluster.config import json_schema
from privmem.cluster.config.describe import markdown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--markdown", action="store_true", help="print docs/configuration.md instead")


def run(args: argparse.Namespace) -> int:
    """Print the schema, or the page."""
    print(
        markdown() if args.markdown else json.dumps(json_schema(), indent=2),
        end="" if args.markdown else "\n",
    )
    return 0
