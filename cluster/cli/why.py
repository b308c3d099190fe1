"""privmem why FILE RANGE: the story of a page of a litmus test."""

from __future__ import annotations

import argparse
import re

from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus.grammar import Misread
from privmem.cluster.litmus.runner import run_script
from privmem.cluster.litmus.script import load_script
from privmem.cluster.litmus.values import TYPES, Names, RangeRef
from privmem.cluster.litmus.world import Stuck, World
from privmem.nodeagent.host.story import Event
from privmem.scheduler.abi import PAGE_SHIFT
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
    for design in designs:
        result = run_script(script, design, story=True)
        print(f"{script.title} [{design}]: {result.status}")
        for reason in result.reasons:
            print(f"  {reason}")
        if result.world is not None:
            for event in _events(result.world, args.page):
                print(f"  {event.number:5d}  {event.what:10s} {named(result.world, event.text)}")
    return 0


def _events(world: World, text: str) -> list[Event]:
    names = Names(
        world.machine.nids,
        {*world.machine.files},
        processes=set(world.processes),
        ranges={name for _, name in world.mappings},
    )
    try:
        ref, _ = TYPES["RANGE"].read([text], names)
        return story_of(world, ref)
    except (Misread, Stuck) as problem:
        raise ConfigError(f"{text}: {problem}") from None


def story_of(world: World, ref: RangeRef) -> list[Event]:
    """Events of the first page of a range, and the refusals of its process."""
    story = world.kernel.memory.story
    assert story is not None
    if ref.is_file:
        file = world.kernel.files[ref.name]
        if ref.first not in file.pages:
            raise Stuck("the page is not in the page cache at the end of the test")
        return story.of_frame(file.pages[ref.first])
    mapped = world.mapping("", ref)
    pid = world.process(mapped.process).pid
    refusals = [e for e in story.events if e.what == "refused" and re.search(rf"\b{ref.name}\b", e.text)]
    page = story.of_page(pid, mapped.addr >> PAGE_SHIFT)
    return sorted({e.number: e for e in [*page, *refusals]}.values(), key=lambda e: e.number)


def named(world: World, text: str) -> str:
    """Node numbers as the script names them."""

    def translate(match: re.Match[str]) -> str:
        names = [world.node_name(int(number)) for number in re.split("[ ,]", match[2])]
        return f"{match[1]} {','.join(names)}"

    return re.sub(r"\b(nodes?) (\d+(?:[ ,]\d+)*)", translate, text)
