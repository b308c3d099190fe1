"""What litmus tests expect: subjects of `expect`, the outcome of a step, and values that differ by design."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from privmem.cluster.config.tree import Problem, Tree, found
from privmem.cluster.litmus.grammar import Misread, match, nearest
from privmem.cluster.litmus.subjects import STATE_FILES, SUBJECTS, Subject
from privmem.cluster.litmus.values import TYPES, Names
from privmem.cluster.litmus.world import World
from privmem.nodeagent.host.vmstat import EVENTS
from privmem.scheduler.isolation import ALIASES, DESIGNS

#: Outcomes of a step that are no errno.
SIGNALS = ("SIGSEGV", "SIGBUS", "SIGKILL")
OK = "ok"
ELSE = "else"
ANY = "any of"

#: The name that Python has for a number: EOPNOTSUPP is ENOTSUP, EWOULDBLOCK is EAGAIN.
_ERRNO_NAMES = {name: errno.errorcode[getattr(errno, name)] for name in dir(errno) if name.startswith("E")}

_COMPARISON = re.compile(r"(>=|<=|>|<|!=)\s*(-?\d+)")


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of an `expect`: what to look at, and what it must be."""

    line: int
    text: str
    subject: Subject
    values: dict[str, Any]
    wanted: Tree

    def check(self, world: World, design: str) -> str:
        """Nothing when it holds, else why not."""
        chosen = choose(self.wanted, design)
        if chosen is None:
            return ""
        wanted = chosen.plain()
        if self.subject.pattern.verb == "no page of":
            wanted = {"nodes": wanted}
            got = self.subject.look(world, self.values | wanted)
            return f"{self.text}: {got}" if got else ""
        got = self.subject.look(world, self.values)
        if agrees(got, wanted):
            return ""
        return f"{self.text}: expected {shown(wanted)}, got {shown(got)}"


# -- values


def is_by_design(tree: Tree) -> bool:
    """Whether a value is a table of designs."""
    if not isinstance(tree.value, dict) or not tree.value:
        return False
    return any(key in DESIGNS or key in ALIASES for key in tree.value) or set(tree.value) == {ELSE}


def choose(tree: Tree, design: str) -> Tree | None:
    """The value for a design: its own, its family's, `else`; None when the file says nothing about it."""
    if not is_by_design(tree):
        return tree
    table = {ALIASES.get(key, key): below for key, below in _items(tree)}
    family = design.split(":")[0]
    for key in (design, family, ELSE):
        if key in table:
            return table[key]
    return None


def _items(tree: Tree) -> list[tuple[str, Tree]]:
    return list(tree.value.items()) if isinstance(tree.value, dict) else []


def agrees(got: Any, wanted: Any) -> bool:
    """Whether what was seen is what was wanted: equal, a comparison such as `>= 3`, one of `any of`, text with
    `...` for anything.
    """
    if isinstance(wanted, dict) and set(wanted) == {ANY}:
        return any(agrees(got, each) for each in wanted[ANY])
    if isinstance(wanted, dict) and isinstance(got, dict):
        return all(agrees(got.get(key, 0), value) for key, value in wanted.items()) and not any(
            value for key, value in got.items() if key not in wanted
        )
    if isinstance(got, dict) and (wanted is None or str(wanted) in ("none", "-", "0")):
        return not any(got.values())
    if isinstance(wanted, tuple) and isinstance(got, str):
        return got.split(",") == [str(w) for w in wanted]
    if isinstance(wanted, tuple):
        return isinstance(got, list | tuple) and [str(g) for g in got] == [str(w) for w in wanted]
    if isinstance(got, list) and isinstance(wanted, str) and got and ("," in wanted or "..." in wanted):
        got, wanted = ",".join(map(str, got)), wanted.replace(" ", "")
    if isinstance(wanted, str) and isinstance(got, int) and not isinstance(got, bool):
        if wanted == "none":
            return got == 0
        match_ = _COMPARISON.fullmatch(wanted.strip())
        return bool(match_) and _compare(got, match_[1], int(match_[2])) if match_ else str(got) == wanted
    if isinstance(wanted, bool) or isinstance(got, bool):
        return got is wanted
    if isinstance(got, list):
        return wanted in (None, "", "none", "-") if not got else [str(wanted)] == [str(g) for g in got]
    if isinstance(wanted, str) and isinstance(got, str):
        wanted, got = _blanks(wanted), _blanks(got)
    if isinstance(wanted, str) and "..." in wanted and isinstance(got, str):
        parts = [re.escape(part) for part in wanted.split("...")]
        return re.fullmatch(".*".join(parts), got, re.DOTALL) is not None
    if wanted is None or wanted == "none":
        return got in (None, "", "none", 0)
    return str(got) == str(wanted)


def _blanks(text: str) -> str:
    """Tabs and runs of blanks as one blank, nothing at the ends: files are not compared by their layout."""
    return re.sub(r"[ \t]+", " ", text).strip()


def _compare(got: int, sign: str, bound: int) -> bool:
    return {
        ">": got > bound,
        ">=": got >= bound,
        "<": got < bound,
        "<=": got <= bound,
        "!=": got != bound,
    }[sign]


def shown(value: Any) -> str:
    """A value in a message."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "nothing" if value is None or value == "" else str(value)


# -- outcomes of steps


def check_outcome(tree: Tree, nodes: Collection[str] = ()) -> list[Problem]:
    """What is wrong with the expected outcome of a step on a machine with these nodes."""
    problems = []
    for word in _outcome_words(tree):
        text = str(word.value)
        if (
            len(text) > 3
            and text.isupper()
            and text.isalpha()
            and not hasattr(errno, text)
            and text not in SIGNALS
            and text not in nodes
        ):
            known = [*errno.errorcode.values(), *SIGNALS]
            problems.append(
                Problem(word.line, f"found {text!r}; allowed: an errno name{nearest(text, known)}", "expect")
            )
    if isinstance(tree.value, dict):
        for key, below in tree.value.items():
            if key not in DESIGNS and key not in ALIASES and key not in (ELSE, ANY):
                names = [*DESIGNS, *ALIASES, ELSE, ANY]
                text = f"found {key!r}; allowed: designs, else, any of{nearest(key, names)}"
                problems.append(Problem(below.key_line, text, "expect"))
    return problems


def _outcome_words(tree: Tree) -> list[Tree]:
    if isinstance(tree.value, dict):
        return [word for below in tree.value.values() for word in _outcome_words(below)]
    if isinstance(tree.value, list):
        return [word for below in tree.value for word in _outcome_words(below)]
    return [tree]


def outcome_agrees(error: str, result: Any, wanted: Any) -> bool:
    """`error`: the name of an errno or signal, empty when the step went well with `result`."""
    if isinstance(wanted, dict) and set(wanted) == {ANY}:
        return any(outcome_agrees(error, result, each) for each in wanted[ANY])
    if error:
        return _ERRNO_NAMES.get(str(wanted), str(wanted)) == error
    if wanted == OK:
        return True
    return agrees("" if result is None else result, wanted)


# -- reading


def parse(text: str, value: Tree, names: Names) -> Claim:
    """Read one line of an `expect`. Raises Misread."""
    subject, values = find_subject(text, names)
    _check_value(subject, value, names)
    return Claim(value.key_line or value.line, text, subject, values, value)


def look(world: World, text: str, names: Names) -> Any:
    """What a subject is now. Raises Misread."""
    subject, values = find_subject(text, names)
    return subject.look(world, values)


def find_subject(text: str, names: Names) -> tuple[Subject, dict[str, Any]]:
    """The subject that a text means, and its values. Raises Misread."""
    words: Sequence[str] = shlex.split(text)
    first_error: Misread | None = None
    most = 0
    for subject in SUBJECTS:
        if not words or words[0] not in subject.pattern.elements[0].literals:
            continue
        try:
            values = match(subject.pattern, words, TYPES, names)
        except Misread as error:
            fits = sum(word in each for word, each in zip(words, subject.pattern.lead, strict=False))
            if fits > most:
                first_error, most = error, fits
            continue
        for chosen, what, known in (
            ("vmstat WORD [+ MORE:WORD]", "counter", EVENTS),
            ("node state WORD", "file", STATE_FILES),
        ):
            wrong = [values[name] for name in ("word", "more") if values.get(name, known[0]) not in known]
            if subject.pattern.text == chosen and wrong:
                hint = nearest(wrong[0], known)
                raise Misread(f"found the {what} {wrong[0]!r}; allowed: {', '.join(known)}{hint}")
        return subject, values
    alike = [s.pattern.text for s in SUBJECTS if words and words[0] in s.pattern.elements[0].literals]
    if first_error and len(alike) > 1 and len(words) > 1 and not _second_fits(words):
        raise Misread(f"found {' '.join(words[:2])!r}; allowed: {'; '.join(alike)}{nearest(text, alike)}")
    if first_error:
        raise first_error
    texts = [s.pattern.text for s in SUBJECTS]
    raise Misread(f"found {text!r}; allowed: {'; '.join(texts)}{nearest(text, texts)}")


def _second_fits(words: Sequence[str]) -> bool:
    """Whether some subject begins with these two words."""
    for subject in SUBJECTS:
        lead = subject.pattern.lead
        if words[0] in lead[0] and (len(lead) == 1 or words[1] in lead[1]):
            return True
    return False


def _check_value(subject: Subject, value: Tree, names: Names) -> None:
    """Nodes in the value must exist."""
    tables = [below for _, below in _items(value)] if is_by_design(value) else [value]
    node_valued = ("pages of RANGE", "no page of RANGE on", "leaks", "demotion targets of NODE")
    if subject.pattern.text not in node_valued:
        return
    for table in tables:
        words: list[str] = []
        if isinstance(table.value, dict):
            words = [key for key in table.value if key != ANY]
        elif isinstance(table.value, list):
            words = [str(item.value) for item in table.value]
        elif isinstance(table.value, str):
            words = [table.value]
        for word in words:
            if word not in names.nodes and word not in ("none", "-", OK):
                known = ", ".join(names.nodes)
                raise Misread(f"found the node {word!r}; allowed: {known}{nearest(word, list(names.nodes))}")
    if any(table.value is None for table in tables):
        raise Misread(f"found {found(None)}; allowed: a value")
