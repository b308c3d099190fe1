"""Replays programs that a real Linux 6.1 ran, and compares every single answer. See README.md beside this
file.
"""

import gzip
import json
from itertools import groupby
from pathlib import Path

import pytest

from privmem.nodeagent.host import filemap, numa_syscalls, syscalls
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.memory import Memory, NodeSpec, NumaBalancing, Sysctl
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.cpuset import Cpuset
from privmem.scheduler.topology import HostTopology, NodeTopology

HERE = Path(__file__).parent
RECORDINGS = ("linux_mempolicy.jsonl.gz", "linux_filepages.jsonl.gz")
PROGRAMS = [
    json.loads(line)
    for recording in RECORDINGS
    for line in gzip.decompress((HERE / recording).read_bytes()).splitlines()
]

NODE_PAGES = (256 << 20) >> 12
DISTANCES = ((10, 20, 30, 40), (20, 10, 20, 30), (30, 20, 10, 20), (40, 30, 20, 10))
FILE_PAGES = (64, 32, 128)
ALL_MEMS = 0b1111
TOPOLOGY = HostTopology(
    tuple(NodeTopology(nid, cpus=(nid,) if nid < 2 else (), span_pages=NODE_PAGES) for nid in range(4)),
    DISTANCES,
)
SPECS = [
    NodeSpec(
        nid=nid,
        device=f"device/n{nid}",
        span_pages=NODE_PAGES,
        boot_pages=NODE_PAGES,
        read_ns=100,
        write_ns=100,
        stores=False,
        compressed=False,
        pooled=False,
        extent_pages=0,
        credit_pages=0,
    )
    for nid in range(4)
]


#: Interleaving over shared memory begins at the object's inode number, and the recording machine numbered
#: its objects through one boot: what a program sees depends on how many shared mappings were made before
#: it. The recording holds those of its own programs; these are the others, by number of the program (0:
#: before all, else a program that was left out). Ten programs in which the number shows fix them modulo 2,
#: 3 or 4; these are the least that agree with all.
SHARED_MAPPINGS_ELSEWHERE = {0: 4, 16: 1, 70: 1, 152: 1, 172: 1}


def first_inodes():
    """Inode number of the first shared mapping of each program."""
    inodes = {}
    before = 0
    for program in PROGRAMS:
        number = int(program["name"][:4])
        elsewhere = sum(count for at, count in SHARED_MAPPINGS_ELSEWHERE.items() if at <= number)
        inodes[program["name"]] = before + elsewhere
        before += sum(1 for op in program["ops"] if op.startswith("mmap") and op.endswith("sa"))
    return inodes


FIRST_INODES = first_inodes()


def base_vpn(region):
    return (0x1000_0000_0000 + int(region) * 0x4000_0000) >> 12


def run_lengths(values):
    return ",".join(f"{value}*{len(list(group))}" for value, group in groupby(values))


class Machine:
    """The recorded machine with one task; one method an op, each returns the result line."""

    def __init__(self, first_ino=1):
        self.memory = Memory(TOPOLOGY, SPECS, Sysctl(NumaBalancing(mode=0), demotion_enabled=False))
        self.task = Task(1, 0, self.memory.resolver)
        self.group = Cpuset(ALL_MEMS, ALL_MEMS)
        cache = self.memory.page_cache
        cache.next_ino[0] = first_ino
        self.files = [cache.create_file(f"f{n}", pages) for n, pages in enumerate(FILE_PAGES)]

    def run(self, op):
        name, *args = op.split()
        return f"{name} {getattr(self, name)(*args)}"

    def cpu(self, cpu):
        self.task.cpu = int(cpu)
        return 0

    def mmap(self, region, pages, kind):
        call = {"pa": syscalls.mmap_anon, "sa": syscalls.mmap_shared}[kind]
        return call(self.memory, self.task, base_vpn(region), int(pages))

    def munmap(self, region, offset, pages):
        return syscalls.munmap(self.memory, self.task, base_vpn(region) + int(offset), int(pages))

    def setpol(self, mode, nodes):
        return numa_syscalls.set_mempolicy(self.task, int(mode), nodemask.parse(nodes))

    def mbind(self, region, offset, pages, mode, nodes, flags):
        start = base_vpn(region) + int(offset)
        nodes = nodemask.parse(nodes)
        return numa_syscalls.mbind(self.memory, self.task, start, int(pages), int(mode), nodes, int(flags))

    def touch(self, region, offset, pages, how):
        start = base_vpn(region) + int(offset)
        return syscalls.touch(self.memory, self.task, start, int(pages), how == "w")

    def where(self, region, offset, pages, task=None):
        start = base_vpn(region) + int(offset)
        found = numa_syscalls.query_range(self.memory, task or self.task, start, int(pages))
        return f"0 {run_lengths(found)}"

    def move(self, region, offset, pages, node, flags):
        start = base_vpn(region) + int(offset)
        vpns = list(range(start, start + int(pages)))
        error, status = numa_syscalls.move_pages(
            self.memory, self.task, vpns, [int(node)] * len(vpns), int(flags)
        )
        return f"{error} {run_lengths(status)}"

    def migrate(self, old, new):
        return numa_syscalls.migrate_pages(self.memory, self.task, nodemask.parse(old), nodemask.parse(new))

    def getpol(self):
        return self.policy_line(numa_syscalls.get_mempolicy(self.memory, self.task))

    def getpolat(self, region, offset):
        vpn = base_vpn(region) + int(offset)
        flags = numa_syscalls.MPOL_F_ADDR
        return self.policy_line(numa_syscalls.get_mempolicy(self.memory, self.task, vpn, flags))

    def policy_line(self, answer):
        error, mode, nodes = answer
        return f"{error} {mode} {nodemask.format_list(nodes, ranges=False)}"

    def allowed(self):
        flags = numa_syscalls.MPOL_F_MEMS_ALLOWED
        error, _, nodes = numa_syscalls.get_mempolicy(self.memory, self.task, None, flags)
        return f"{error} {nodemask.format_list(nodes, ranges=False)}"

    def madvise(self, region, offset, pages, advice):
        assert advice == "4"  # MADV_DONTNEED
        return syscalls.madvise_dontneed(self.memory, self.task, base_vpn(region) + int(offset), int(pages))

    def forkwrite(self, region, offset, pages):
        child = syscalls.fork(self.memory, self.task, 2)
        start = base_vpn(region) + int(offset)
        error = syscalls.touch(self.memory, child, start, int(pages), True)
        found = self.where(region, offset, pages, child)
        syscalls.exit_task(self.memory, child)
        return f"{error} | child where {found}"

    def fmap(self, region, file, pages, kind):
        return syscalls.mmap_object(
            self.memory, self.task, base_vpn(region), int(pages), self.files[int(file)], kind == "fp"
        )

    def fread(self, file, offset, pages):
        return filemap.read_pages(self.memory, self.task, self.files[int(file)], int(offset), int(pages))

    def faults(self, region, offset, pages, how):
        count = self.memory.vmstat.count
        before, hard_before = count["pgfault"], count["pgmajfault"]
        error = syscalls.touch(self.memory, self.task, base_vpn(region) + int(offset), int(pages), how == "w")
        assert error == 0
        hard = count["pgmajfault"] - hard_before
        return f"{count['pgfault'] - before - hard} {hard}"

    def drop(self):
        filemap.sync(self.memory)
        filemap.drop_caches(self.memory)
        return 0

    def cpuset(self, nodes):
        change = syscalls.write_cpuset_mems(
            self.memory, [self.task], self.group, nodemask.parse(nodes), ALL_MEMS
        )
        self.group = change.cpuset
        return change.error


@pytest.mark.parametrize("program", PROGRAMS, ids=[program["name"] for program in PROGRAMS])
def test_as_linux(program):
    machine = Machine(FIRST_INODES[program["name"]])
    results = [machine.run(op) for op in program["ops"]]
    assert list(zip(program["ops"], results, strict=True)) == list(
        zip(program["ops"], program["results"], strict=True)
    )
    validate_memory(machine.memory)
