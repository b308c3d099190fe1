"""The vocabulary of litmus tests for tests that are written in Python: a machine, its processes, what is where.

A `Bench` is what the pytest fixture `privmem_machine` hands out. Its processes are those of the emulated kernel
(`Process`: system calls as methods that raise OSError); commands and subjects of litmus files work as well.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from privmem.cluster.config.tree import read_yaml
from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus import expectations, steps
from privmem.cluster.litmus.grammar import Misread, nearest
from privmem.cluster.litmus.machine import Machine
from privmem.cluster.litmus.machines import load_machine, machine_files, machine_of_tree
from privmem.cluster.litmus.values import Names
from privmem.cluster.litmus.world import World
from privmem.nodeagent.host.kernel import Kernel
from privmem.nodeagent.host.pagecache import MemObject
from privmem.nodeagent.host.process import Process
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.isolation import select_designs

#: A machine: the name of one that comes with privmem, a file, or what such a file holds.
MachineLike = str | Path | Mapping[str, Any]


class Bench:
    """One machine under one design. Raises ConfigError for a machine or design that makes no sense."""

    def __init__(self, machine: MachineLike = "standard", design: str = "private-zonelist") -> None:
        try:
            (chosen,) = select_designs(design)
        except KeyError as error:
            told = f"design: found {design!r}; allowed: the name of one design; {error.args[0]}"
            raise ConfigError(told) from None
        except ValueError:
            raise ConfigError(f"design: found {design!r}; allowed: the name of one design") from None
        self.design = chosen.name
        self.world = World.boot(_machine(machine), {}, chosen.name)
        self._names = Names(
            self.world.machine.nids,
            set(self.world.machine.files),
            cgroups=set(self.world.machine.cgroups),
            devices=set(self.world.machine.cram),
        )

    @property
    def kernel(self) -> Kernel:
        """The emulated Linux: kernel threads, hotplug, files."""
        return self.world.kernel

    def node(self, name: str) -> int:
        """The id of a node. Raises ConfigError."""
        nids = self.world.machine.nids
        if name not in nids:
            raise ConfigError(
                f"found the node {name!r}; allowed: {', '.join(nids)}{nearest(name, list(nids))}"
            )
        return nids[name]

    def process(self, name: str, cpu: int | None = None, cgroup: str = "") -> Process:
        """The process of this name; made at its first use, on `cpu` (default: the first) and in `cgroup`."""
        self._names.processes.add(name)
        if cpu is not None or cgroup:
            self.world.starts.setdefault(name, (self.world.first_cpu if cpu is None else cpu, cgroup))
        return self.world.process(name)

    def file(self, name: str) -> MemObject:
        """A file of the machine."""
        return self.kernel.files[name]

    def pages(self, process: Process, addr: int, nr_pages: int) -> dict[str, int]:
        """Node -> how many pages of [addr, addr + nr_pages) are there."""
        found = process.where(addr, nr_pages * PAGE_SIZE)
        nids = sorted({nid for nid in found if nid is not None})
        return {self.world.node_name(nid): found.count(nid) for nid in nids}

    def do(self, line: str) -> steps.Outcome:
        """A step of a litmus file, such as `A: mem = mmap 64 pages`: what it gives. Raises OSError, Signalled."""
        actor, _, command = line.partition(":")
        try:
            call = steps.parse(actor.strip(), shlex.split(command), self._names)
        except (Misread, ValueError) as error:
            raise ConfigError(f"{line}: {error}") from None
        return call.run(self.world, actor.strip())

    def look(self, subject: str) -> Any:
        """What an `expect` of a litmus file looks at, such as `pages of mem`."""
        try:
            return expectations.look(self.world, subject, self._names)
        except (Misread, ValueError) as error:
            raise ConfigError(f"{subject}: {error}") from None

    def validate(self) -> None:
        """Raise InvariantError unless everything equals a recount."""
        self.kernel.validate()


def _machine(machine: MachineLike) -> Machine:
    if isinstance(machine, Mapping):
        tree, problems = read_yaml(yaml.safe_dump(dict(machine), sort_keys=False))
        return machine_of_tree(tree, problems, "machine")
    if isinstance(machine, Path):
        return load_machine(machine)
    known = machine_files()
    if machine not in known:
        hint = nearest(machine, list(known))
        raise ConfigError(
            f"machine: found {machine!r}; allowed: {', '.join(known)}, a path, or a mapping{hint}"
        )
    return load_machine(known[machine])
