"""Running a litmus file under one design, and what came out."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

from privmem.cluster.litmus.expectations import choose, outcome_agrees, shown
from privmem.cluster.litmus.script import Script, Step
from privmem.cluster.litmus.telling import note_call, story_of_claim, story_of_step
from privmem.cluster.litmus.world import Stuck, World
from privmem.nodeagent.host.process import Signalled
from privmem.nodeagent.host.story import Story
from privmem.scheduler.errors import InvariantError

PASSED, FAILED, NOT_RUN, ERROR = "passed", "failed", "not run", "error"


@dataclass(slots=True)
class Result:
    """One file under one design."""

    path: str
    title: str
    design: str
    status: str
    #: Why it failed, one entry an expectation, with the line.
    reasons: list[str] = field(default_factory=list)
    #: For each reason the end of the story of the page that it is about, if the story was recorded.
    stories: list[list[str]] = field(default_factory=list)
    #: The kernel as it stood at the end, for `why`; None when it never ran.
    world: World | None = None

    def plain(self) -> dict[str, Any]:
        """For --json."""
        return {
            "file": self.path,
            "title": self.title,
            "design": self.design,
            "status": self.status,
            "reasons": self.reasons,
            "stories": self.stories,
        }

    def fail(self, reason: str, story: list[str]) -> None:
        """One more reason."""
        self.reasons.append(reason)
        self.stories.append(story)


def applies(script: Script, design: str) -> bool:
    """Whether a file is about a design."""
    return script.designs == ("every",) or design in script.designs


def run_script(script: Script, design: str, story: bool = False) -> Result:
    """Run a file. It goes on after a failed expectation, and ends at a step that makes no sense."""
    result = Result(script.path, script.title, design, PASSED)
    if not applies(script, design):
        result.status = NOT_RUN
        return result
    try:
        world = World.boot(script.machine, script.processes, design)
    except OSError as error:
        result.status = ERROR
        result.fail(f"{script.path}: the machine does not boot: {error.strerror}", [])
        return result
    result.world = world
    if story:
        world.kernel.memory.story = Story(world.kernel.memory)
    try:
        for step in script.steps:
            for reason, told in _take(world, step, design):
                result.fail(f"line {step.line}: {reason}", told)
        world.kernel.validate()
    except (Stuck, InvariantError) as problem:
        result.status = ERROR
        result.fail(f"line {step.line}: {step.actor or 'expect'}: {step.text}: {problem}", [])
        return result
    if result.reasons:
        result.status = FAILED
    return result


def _take(world: World, step: Step, design: str) -> list[tuple[str, list[str]]]:
    """Take a step; the expectations that did not hold, each with the end of a story."""
    if step.call is None:
        reasons = [(claim.check(world, design), claim) for claim in step.claims]
        return [(reason, story_of_claim(world, claim, design)) for reason, claim in reasons if reason]
    error, outcome = "", None
    story = world.kernel.memory.story
    if story is not None:
        story.acts(f"line {step.line}, {step.actor}: {step.text}")
    try:
        outcome = step.call.run(world, step.actor)
    except OSError as failure:
        error = errno.errorcode.get(failure.errno or 0, str(failure.errno))
    except Signalled as end:
        error = end.signal.name
    if story is not None:
        note_call(world, step.actor, step.call, error, outcome)
    chosen = choose(step.outcome, design) if step.outcome is not None else None
    came = error or ("ok" if outcome is None else outcome)
    if chosen is None:
        if step.outcome is None and error:
            return [(f"{step.actor}: {step.text}: expected ok, got {error}", story_of_step(world))]
        return []
    wanted = chosen.plain()
    if outcome_agrees(error, outcome, wanted):
        return []
    reason = f"{step.actor}: {step.text}: expected {shown(wanted)}, got {shown(came)}"
    return [(reason, story_of_step(world))]
