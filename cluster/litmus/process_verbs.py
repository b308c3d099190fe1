"""What a process does in a litmus test: system calls and accesses."""

from __future__ import annotations

import itertools
from typing import Any

from privmem.cluster.litmus.file_verbs import open_device
from privmem.cluster.litmus.values import RangeRef
from privmem.cluster.litmus.world import Mapped, Stuck, World, check, run_lengths
from privmem.nodeagent.host.drivers.cramdax import CramDax
from privmem.nodeagent.host.drivers.dax_test import DaxTest
from privmem.nodeagent.host.fault import handle_fault
from privmem.nodeagent.host.layout import PTE_WRITABLE
from privmem.scheduler import nodemask
from privmem.scheduler.abi import (
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    PAGE_SHIFT,
    PAGE_SIZE,
    Mpol,
)

Values = dict[str, Any]


def _range(world: World, actor: str, ref: RangeRef) -> tuple[int, int]:
    mapped = world.mapping(actor, ref)
    if mapped.process != actor:
        raise Stuck(f"{actor} cannot do this to memory of {mapped.process}")
    return mapped.addr, mapped.length


def _keep(world: World, actor: str, values: Values, addr: int, length: int) -> None:
    world.mappings[actor, values["result"]] = Mapped(actor, addr, -(-length // PAGE_SIZE) * PAGE_SIZE)


def _mmap_device(world: World, actor: str, values: Values) -> None:
    process, length = world.process(actor), values["size"]
    device = world.devices[values["device"]]
    nr = length >> PAGE_SHIFT
    start = process.free_address(nr)
    if isinstance(device, DaxTest):
        check(device.mmap(process.task, start, nr, "shared" in values))
    elif isinstance(device, CramDax):
        raise Stuck("a cramdax device has no mapping")
    else:
        opened = world.opened.get(values.get("word", "")) or open_device(device)
        check(device.mmap(process.task, opened, start, nr, values.get("first", 0), "shared" in values))
    _keep(world, actor, values, start << PAGE_SHIFT, length)


def _mmap_huge(world: World, actor: str, values: Values) -> None:
    addr = world.process(actor).mmap_hugetlb(values["size"], shared="shared" in values)
    _keep(world, actor, values, addr, values["size"])


def _munmap(world: World, actor: str, values: Values) -> None:
    world.process(actor).munmap(*_range(world, actor, values["range"]))


def _store(world: World, actor: str, values: Values) -> None:
    world.process(actor).touch(*_range(world, actor, values["range"]), write=True)


def _write_fault(world: World, actor: str, values: Values) -> int:
    """A store that faults once and is not made: pages that may be written by then."""
    area = _range(world, actor, values["range"])
    memory, task = world.kernel.memory, world.task(actor)
    ready = 0
    for vpn in range(area[0] >> PAGE_SHIFT, (area[0] + area[1]) >> PAGE_SHIFT):
        handle_fault(memory, task, vpn, is_write=True)
        vma = task.mm.find(vpn)
        ready += bool(vma and int(memory.page_table.pte[vma.slot_of(vpn)]) & PTE_WRITABLE)
    return ready


def _race(world: World, actor: str, values: Values) -> int:
    """Threads store to each page at once: all of them fault on the entry as it was before the first one's fault."""
    area = _range(world, actor, values["range"])
    promoted = world.kernel.memory.cram.promote_count
    for addr in range(area[0], area[0] + area[1], PAGE_SIZE):
        for _ in range(values["number"]):
            handle_fault(world.kernel.memory, world.task(actor), addr >> PAGE_SHIFT, is_write=True)
        world.process(actor).touch(addr, PAGE_SIZE, write=True)
    return world.kernel.memory.cram.promote_count - promoted


def _load(world: World, actor: str, values: Values) -> None:
    world.process(actor).touch(*_range(world, actor, values["range"]), write=False)


def _mode(values: Values) -> int:
    mode = int(values["mode"])
    mode |= MPOL_F_STATIC_NODES if "static" in values else 0
    return mode | (MPOL_F_RELATIVE_NODES if "relative" in values else 0)


def _set_mempolicy(world: World, actor: str, values: Values) -> None:
    world.process(actor).set_mempolicy(_mode(values), values.get("nodes", []))


def _mbind(world: World, actor: str, values: Values) -> None:
    flags = MPOL_MF_STRICT if "strict" in values else 0
    flags |= MPOL_MF_MOVE if "move" in values else 0
    flags |= MPOL_MF_MOVE_ALL if "move_all" in values else 0
    process, area = world.process(actor), _range(world, actor, values["range"])
    process.mbind(*area, _mode(values), values.get("nodes", []), flags)


def _home_node(world: World, actor: str, values: Values) -> None:
    area = _range(world, actor, values["range"])
    world.process(actor).set_mempolicy_home_node(*area, values["node"])


def _get_mempolicy(world: World, actor: str, values: Values) -> str:
    process = world.process(actor)
    ref = values.get("range")
    if ref is None:
        mode, nodes = process.get_mempolicy()
    else:
        mode, nodes = process.get_mempolicy(_range(world, actor, ref)[0], 2)
    return policy_text(world, mode, nodes)


def policy_text(world: World, mode: int, nodes: set[int]) -> str:
    """`bind D0,P`, as commands write a policy."""
    flags = "".join(
        f" {name}"
        for name, bit in (("static", MPOL_F_STATIC_NODES), ("relative", MPOL_F_RELATIVE_NODES))
        if mode & bit
    )
    word = Mpol(mode & 0xFF).name.lower()
    named = ",".join(world.node_name(nid) for nid in sorted(nodes))
    return f"{word} {named}".strip() + flags


def _mems_allowed(world: World, actor: str, _values: Values) -> str:
    _, nodes = world.process(actor).get_mempolicy(flags=4)
    return ",".join(world.node_name(nid) for nid in sorted(nodes))


def _addresses(world: World, actor: str, ref: RangeRef) -> tuple[list[int], int]:
    """Address of each page of a range, also of another process's, and whose it is."""
    mapped = world.mapping(actor, ref)
    pid = 0 if mapped.process == actor else world.process(mapped.process).pid
    return list(range(mapped.addr, mapped.addr + mapped.length, PAGE_SIZE)), pid


def _move_pages(world: World, actor: str, values: Values) -> str:
    addrs, pid = _addresses(world, actor, values["range"])
    flags = MPOL_MF_MOVE_ALL if "all" in values else MPOL_MF_MOVE
    nodes = [nid for nid, _ in zip(itertools.cycle(values["nodes"]), addrs, strict=False)] or None
    status = world.process(actor).move_pages(addrs, nodes, flags, pid)
    return run_lengths([world.status_text(s) for s in status])


def _query_pages(world: World, actor: str, values: Values) -> str:
    addrs, pid = _addresses(world, actor, values["range"])
    status = world.process(actor).move_pages(addrs, pid=pid)
    return run_lengths([world.status_text(s) for s in status])


def _migrate_pages(world: World, actor: str, values: Values) -> int:
    pid = world.process(values["process"]).pid if "process" in values else 0
    return world.process(actor).migrate_pages(values["from"], values["target"], pid)


def _drop_root(world: World, actor: str, _values: Values) -> None:
    world.task(actor).root = False


def _madvise(world: World, actor: str, values: Values) -> None:
    world.process(actor).madvise(*_range(world, actor, values["range"]), values["advice"])


def _pin(world: World, actor: str, values: Values) -> int:
    area = _range(world, actor, values["range"])
    return world.process(actor).pin(*area, write="read" not in values, longterm="short" not in values)


def _unpin(world: World, actor: str, values: Values) -> int:
    return world.process(actor).unpin(*_range(world, actor, values["range"]))


def _fork(world: World, actor: str, values: Values) -> None:
    child = values["result"]
    world.processes[child] = world.process(actor).fork()
    for (owner, name), mapped in list(world.mappings.items()):
        if owner == actor:
            world.mappings[child, name] = Mapped(child, mapped.addr, mapped.length)


def _exit(world: World, actor: str, _values: Values) -> None:
    world.process(actor).exit()


def _run_on(world: World, actor: str, values: Values) -> None:
    cpus = [cpu for node in world.machine.nodes.values() if node.nid == values["node"] for cpu in node.cpus]
    if not cpus:
        raise Stuck(f"{world.node_name(values['node'])} has no CPU")
    world.process(actor).sched_setaffinity(cpus[0])


def _run_on_cpu(world: World, actor: str, values: Values) -> None:
    world.process(actor).sched_setaffinity(values["number"])


def _join(world: World, actor: str, values: Values) -> None:
    check(world.kernel.attach(world.process(actor), values["cgroup"]))


def nodes_text(world: World, mask: int) -> str:
    """Names of the nodes of a mask."""
    return ",".join(world.node_name(nid) for nid in nodemask.nodes(mask))


VERBS = [
    (
        "mmap device DEVICE SIZE [shared] [from FIRST:NUMBER] [opened WORD]",
        _mmap_device,
        "a driver's device file; `opened NAME` maps what `NAME = open DEVICE` opened",
    ),
    ("mmap hugetlb SIZE [shared]", _mmap_huge, "huge pages of the pool (MAP_HUGETLB)"),
    ("munmap RANGE", _munmap, "munmap(2)"),
    ("touch RANGE", _store, "write to each page, in order"),
    ("store RANGE", _store, "the same as touch"),
    (
        "write_fault RANGE",
        _write_fault,
        "one write fault on each page, without the store: pages that may be written",
    ),
    (
        "race NUMBER threads on RANGE",
        _race,
        "so many threads write to each page at once; each faults, and each goes on: pages promoted by it",
    ),
    ("load RANGE", _load, "read each page, in order"),
    ("set_mempolicy MODE [NODES] [static|relative]...", _set_mempolicy, "set_mempolicy(2)"),
    ("mbind RANGE MODE [NODES] [static|relative|strict|move|move_all]...", _mbind, "mbind(2)"),
    ("set_mempolicy_home_node RANGE NODE", _home_node, "set_mempolicy_home_node(2) (Linux 5.17)"),
    ("get_mempolicy [RANGE]", _get_mempolicy, "get_mempolicy(2) of the task, or at an address: `bind P`"),
    ("mems_allowed", _mems_allowed, "get_mempolicy(2) with MPOL_F_MEMS_ALLOWED: `D0,D1`"),
    (
        "move_pages RANGE [to] NODES [all]",
        _move_pages,
        "move_pages(2) to a node, or to several in turn, also of another's B.mem; all: MOVE_ALL: status of each "
        "page, `P*4 ENOENT`",
    ),
    ("query_pages RANGE", _query_pages, "move_pages(2) without nodes: where each page is"),
    (
        "migrate_pages FROM:NODES [to] TARGET:NODES [of PROCESS]",
        _migrate_pages,
        "migrate_pages(2) of itself, or of another process: pages that stayed",
    ),
    ("drop root", _drop_root, "the process loses CAP_SYS_NICE and CAP_SYS_PTRACE (it begins as root)"),
    ("madvise RANGE ADVICE", _madvise, "madvise(2): dontneed, pageout, cold, free, collapse, ..."),
    ("pin RANGE [read|short|longterm]...", _pin, "a device pins pages, long-term unless short: how many"),
    ("unpin RANGE", _unpin, "undo the pins"),
    ("fork", _fork, "`B = fork`: a child, which has the same mappings under the same names"),
    ("exit", _exit, "the process ends"),
    ("run on NODE", _run_on, "move to the first CPU of a node"),
    ("run on cpu NUMBER", _run_on_cpu, "sched_setaffinity(2) to one CPU"),
    ("join CGROUP", _join, "move into a cgroup"),
]
