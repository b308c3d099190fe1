"""privmem why FILE RANGE: the story of a page of a litmus test."""

from __future__ import annotations

import argparse

from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus.grammar import Misread
from privmem.cluster.litmus.runner import run_script
from privmem.cluster.litmus.script import load_script
from privmem.cluster.litmus.telling import lines_of, story_of
from privmem.cluster.litmus.values import TYPES, Names
from privmem.cluster.litmus.world import Stuck, World
from privmem.nodeagent.host.story import Event
from privmem.scheduler.isolation import select_designs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a litmus file")
    parser.add_argument(
        "page", metavar="RANGE", help="a page: mem[3], A.mem[3], or myfile[3] in the page cache"
    )
    parser.add_argument(
        "--design", default="private-zonelist", metavar="NAMES", help="designs with commas between"
    )


def run(args: argparse.Namespace) -> int:
    """Print every event that moved or refused the page, in order, with its cause and the rule that decided."""
    script = load_script(args.file)
    try:
        designs = [design.name for design in select_designs(args.design)]
    except KeyError as error:
        raise ConfigError(f"--design: {error.args[0]}") from None
    for number, design in enumerate(designs):
        result = run_script(script, design, story=True)
        print("\n" * (number > 0) + f"{script.title} [{design}]: {result.status}")
        for reason in result.reasons:
            print(f"  {reason}")
        if result.world is not None:
            events = _events(result.world, args.page)
            print(*lines_of(result.world, events) or ["nothing ever happened to this page"], sep="\n")
    return 0


def _events(world: World, text: str) -> list[Event]:
    names = Names(
        world.machine.nids,
        {*world.machine.files, *world.opened},
        processes=set(world.processes),
        ranges={name for _, name in world.mappings},
    )
    try:
        ref, _ = TYPES["RANGE"].read([text], names)
        return story_of(world, ref)
    except (Misread, Stuck) as problem:
        raise ConfigError(f"{text}: {problem}") from None
