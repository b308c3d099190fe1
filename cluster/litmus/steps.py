"""The commands of litmus tests: a table of patterns by kind of actor, and reading a command line against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from privmem.cluster.litmus import (
    admin_verbs,
    claim_verbs,
    cram_verbs,
    driver_verbs,
    file_verbs,
    kernel_verbs,
    mapping_verbs,
    pressure_verbs,
    process_verbs,
)
from privmem.cluster.litmus.grammar import Misread, Pattern, match, nearest, pattern
from privmem.cluster.litmus.values import TYPES, Names
from privmem.cluster.litmus.world import World

#: What a step comes to: nothing, a number, or text; an error is an OSError, a signal Signalled.
Outcome = int | str | None
Function = Callable[[World, str, dict[str, Any]], Outcome]


@dataclass(frozen=True, slots=True)
class Verb:
    """One command: its pattern, what it does, and a line for the documentation."""

    pattern: Pattern
    function: Function
    doc: str


@dataclass(frozen=True, slots=True)
class Call:
    """A command line that was understood."""

    verb: Verb
    values: dict[str, Any]
    #: Name on the left of `=`.
    result_name: str = ""

    def run(self, world: World, actor: str) -> Outcome:
        """Do it. May raise OSError, Signalled, Stuck."""
        try:
            return self.verb.function(world, actor, self.values | {"result": self.result_name})
        finally:
            world.settle()


def _table(entries: Sequence[tuple[str, Function, str]]) -> tuple[Verb, ...]:
    return tuple(Verb(pattern(text), function, doc) for text, function, doc in entries)


#: Actor -> its commands; every other actor is a process.
TABLES: dict[str, tuple[Verb, ...]] = {
    "process": _table([*mapping_verbs.VERBS, *file_verbs.VERBS, *process_verbs.VERBS]),
    "kernel": _table([*kernel_verbs.VERBS, *cram_verbs.KERNEL_VERBS, *pressure_verbs.KERNEL_VERBS]),
    "admin": _table(admin_verbs.VERBS),
    "driver": _table(
        [*driver_verbs.VERBS, *cram_verbs.DRIVER_VERBS, *pressure_verbs.DRIVER_VERBS, *claim_verbs.VERBS]
    ),
}
RESERVED = ("kernel", "admin", "driver", "process")


def parse(actor: str, words: Sequence[str], names: Names) -> Call:
    """Read a command line. New names (mappings, processes, devices, cgroups) are added to `names`."""
    words = list(words)
    result = ""
    if len(words) > 2 and words[1] == "=":
        result, words = words[0], words[2:]
        if not result.isidentifier():
            raise Misread(f"found the name {result!r}; allowed: letters and digits")
    if not words:
        raise Misread("found an empty command")
    if actor not in RESERVED:
        if not actor.isidentifier():
            hint = (
                "; a name for what a step gives stands behind the actor: `A: B = fork`"
                if "=" in actor
                else ""
            )
            raise Misread(f"found the actor {actor!r}; allowed: a process, kernel, admin, driver{hint}")
        names.processes.add(actor)
    table = TABLES.get(actor, TABLES["process"])
    call = _read(table, words, names, result)
    _add_names(call, names)
    return call


def _read(table: tuple[Verb, ...], words: list[str], names: Names, result: str) -> Call:
    """The first verb whose pattern fits; of those that begin alike the error of the longest is told."""
    fitting = [v for v in table if _begins(v.pattern, words)]
    if not fitting:
        raise Misread(_unknown(table, words))
    fitting.sort(key=lambda v: -len(v.pattern.lead))
    first_error: Misread | None = None
    for verb in fitting:
        try:
            return Call(verb, match(verb.pattern, words, TYPES, names), result)
        except Misread as error:
            first_error = first_error or error
    assert first_error is not None
    text = fitting[0].pattern.text
    raise Misread(f"{first_error}" if text in str(first_error) else f"{first_error} (pattern: {text})")


def _unknown(table: tuple[Verb, ...], words: Sequence[str]) -> str:
    """What is wrong with a command line that begins like no pattern, and who else has such a command."""
    alike = [v.pattern.text for v in table if words[0] in v.pattern.lead[0]]
    if alike:
        return f"found {' '.join(words[:2])!r}; allowed: {'; '.join(alike)}"
    known = sorted({" ".join("|".join(each) for each in v.pattern.lead) for v in table})
    others = [actor for actor, other in TABLES.items() if any(_begins(v.pattern, words) for v in other)]
    doers = " and ".join(others).replace("process", "a process")
    told = f"; {doers} can do that" if others else nearest(words[0], known)
    return f"found {words[0]!r}; allowed: {', '.join(known)}{told}"


def _begins(chosen: Pattern, words: Sequence[str]) -> bool:
    """Whether a command line begins as the pattern does."""
    lead = chosen.lead
    return len(words) >= len(lead) and all(word in each for word, each in zip(words, lead, strict=False))


def _add_names(call: Call, names: Names) -> None:
    verb, values = call.verb.pattern.verb, call.values
    if verb.startswith("mmap"):
        if not call.result_name:
            raise Misread("found mmap without a name; allowed: NAME = mmap ...")
        names.ranges.add(call.result_name)
    elif verb == "mremap" and call.result_name:
        names.ranges.add(call.result_name)
    elif verb == "fork":
        if not call.result_name:
            raise Misread("found fork without a name; allowed: NAME = fork")
        names.processes.add(call.result_name)
    elif verb in ("dax_test", "anondax", "cramdax"):
        if not call.result_name:
            raise Misread(f"found {verb} without a name; allowed: NAME = {verb} NODE")
        names.devices.add(call.result_name)
    elif verb == "cgroup":
        names.cgroups.add(values["word"])
    elif verb in ("open", "open file"):
        if not call.result_name:
            raise Misread(f"found {verb} without a name; allowed: NAME = {verb} ...")
        names.files.add(call.result_name)
