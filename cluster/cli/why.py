"""privmem why: the story of a page, of a litmus test or of a run that was made with --story."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus.grammar import Misread, nearest
from privmem.cluster.litmus.runner import run_script
from privmem.cluster.litmus.script import load_script
from privmem.cluster.litmus.telling import lines_of, story_of
from privmem.cluster.litmus.values import TYPES, Names
from privmem.cluster.litmus.world import Stuck, World
from privmem.cluster.progress import span
from privmem.cluster.results.stories import read_story
from privmem.nodeagent.host.program import BASE_VPN
from privmem.nodeagent.host.story_events import Event, of_page
from privmem.scheduler.isolation import select_designs

NOTHING = "nothing ever happened to this page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="FILE|DIR", type=Path, help="a litmus file, or the folder of a run")
    parser.add_argument(
        "page",
        metavar="PAGE",
        nargs="+",
        help="of a litmus test: mem[3], A.mem[3], or myfile[3] in the page cache; of a run: HOST PROCESS NUMBER",
    )
    parser.add_argument(
        "--design",
        default="private-zonelist",
        metavar="NAMES",
        help="designs with commas between (litmus tests)",
    )


def run(args: argparse.Namespace) -> int:
    """Print every event that moved or refused the page, in order, with its cause and the rule that decided."""
    if args.target.is_dir():
        if len(args.page) != 3:
            raise ConfigError(f"{args.target}: found {' '.join(args.page)!r}; allowed: HOST PROCESS NUMBER")
        return _of_run(args.target, *args.page)
    if len(args.page) != 1:
        raise ConfigError(f"{args.target}: found {' '.join(args.page)!r}; allowed: one page, such as mem[3]")
    return _of_litmus(args.target, args.page[0], args.design)


# -- of a litmus test


def _of_litmus(path: Path, page: str, chosen: str) -> int:
    script = load_script(path)
    try:
        designs = [design.name for design in select_designs(chosen)]
    except KeyError as error:
        raise ConfigError(f"--design: {error.args[0]}") from None
    for number, design in enumerate(designs):
        result = run_script(script, design, story=True)
        print("\n" * (number > 0) + f"{script.title} [{design}]: {result.status}")
        for reason in result.reasons:
            print(f"  {reason}")
        if result.world is not None:
            print(*lines_of(result.world, _events(result.world, page)) or [NOTHING], sep="\n")
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


# -- of a run


def _of_run(folder: Path, host: str, process: str, page: str) -> int:
    story = read_story(folder, host)
    if process not in story.processes:
        known = sorted(story.processes)
        raise ConfigError(
            f"found {process!r}; allowed: a process of {host} ({', '.join(known)}){nearest(process, known)}"
        )
    if not page.isascii() or not page.isdecimal() or len(page) > 12:
        raise ConfigError(f"found {page!r}; allowed: the number of a page of {process}, from 0 on")
    names = {pid: name for name, pid in story.processes.items()}
    if story.dropped:
        print(f"the first {story.dropped} events of {host} were not kept (--story N keeps more)")
    cause, found = None, False
    for event in of_page(story.events, story.processes[process], BASE_VPN + int(page)):
        found = True
        if (event.time_ns, event.cause) != cause:
            cause = (event.time_ns, event.cause)
            print(f"{span(event.time_ns)}: {event.cause}")
        print(f"  {event.what:10s}{_with_names(event.text, names)}")
    if not found:
        print(NOTHING)
    return 0


def _with_names(text: str, names: dict[int, str]) -> str:
    return re.sub(r"\bprocess (\d+)\b", lambda match: names.get(int(match[1]), match[0]), text)
