"""What a process does to its mappings in a litmus test: rights, locks, growing and moving them."""

from __future__ import annotations

from typing import Any

from privmem.cluster.litmus.values import RangeRef
from privmem.cluster.litmus.world import Mapped, World, check
from privmem.nodeagent.host import mlock, mprotect, mremap
from privmem.nodeagent.host import mmap as mappings
from privmem.scheduler.abi import PAGE_SHIFT, PAGE_SIZE

Values = dict[str, Any]

_RIGHTS = {
    "noaccess": mprotect.PROT_NONE,
    "readonly": mprotect.PROT_READ,
    "writeonly": mprotect.PROT_WRITE,
    "readwrite": mprotect.PROT_READ | mprotect.PROT_WRITE,
}
_MMAP_FLAGS = {
    "populate": mappings.MAP_POPULATE,
    "locked": mappings.MAP_LOCKED,
    "noreplace": mappings.MAP_FIXED_NOREPLACE,
}
_MCL_FLAGS = {"current": mlock.MCL_CURRENT, "future": mlock.MCL_FUTURE, "onfault": mlock.MCL_ONFAULT}
_MREMAP_FLAGS = {"maymove": mremap.MREMAP_MAYMOVE, "dontunmap": mremap.MREMAP_DONTUNMAP}


def _pages(world: World, actor: str, ref: RangeRef) -> tuple[int, int]:
    mapped = world.mapping(actor, ref)
    return mapped.addr >> PAGE_SHIFT, mapped.length >> PAGE_SHIFT


def _bits(table: dict[str, int], values: Values) -> int:
    return sum(bit for word, bit in table.items() if word in values)


def _rights(values: Values) -> int:
    return next((bits for word, bits in _RIGHTS.items() if word in values), _RIGHTS["readwrite"])


def map_range(world: World, actor: str, values: Values, file: str = "") -> None:
    """mmap(2) of anonymous memory or of a file, and the name that the script gives it."""
    first = values.get("first", 0)
    opened, length = None, values.get("size", 0)
    if file:
        opened = world.open_file(file)
        length = length or (world.file(file).nr_pages - first) * PAGE_SIZE
    flags = mappings.MAP_SHARED if "shared" in values else mappings.MAP_PRIVATE
    flags |= _bits(_MMAP_FLAGS, values) | (0 if file else mappings.MAP_ANONYMOUS)
    addr = int(values.get("addr", 0))
    if addr and "noreplace" not in values:
        flags |= mappings.MAP_FIXED
    nr_pages = -(-length // PAGE_SIZE)
    memory, task = world.kernel.memory, world.task(actor)
    start = mappings.mmap(memory, task, addr >> PAGE_SHIFT, nr_pages, _rights(values), flags, opened, first)
    world.mappings[actor, values["result"]] = Mapped(actor, check(start) << PAGE_SHIFT, nr_pages * PAGE_SIZE)


def _mmap(world: World, actor: str, values: Values) -> None:
    map_range(world, actor, values)


def _mmap_file(world: World, actor: str, values: Values) -> None:
    map_range(world, actor, values, values["file"])


def _mprotect(world: World, actor: str, values: Values) -> None:
    start, nr_pages = _pages(world, actor, values["range"])
    task = world.task(actor)
    check(mprotect.mprotect(world.kernel.memory, task, start, nr_pages, _rights(values)))


def _mlock(world: World, actor: str, values: Values) -> None:
    flags = mlock.MLOCK_ONFAULT if "onfault" in values else 0
    pages = _pages(world, actor, values["range"])
    check(mlock.mlock(world.kernel.memory, world.task(actor), *pages, flags))


def _munlock(world: World, actor: str, values: Values) -> None:
    pages = _pages(world, actor, values["range"])
    check(mlock.munlock(world.kernel.memory, world.task(actor), *pages))


def _mlockall(world: World, actor: str, values: Values) -> None:
    check(mlock.mlockall(world.kernel.memory, world.task(actor), _bits(_MCL_FLAGS, values)))


def _munlockall(world: World, actor: str, _values: Values) -> None:
    check(mlock.munlockall(world.kernel.memory, world.task(actor)))


def _mremap(world: World, actor: str, values: Values) -> None:
    """The name stands for the mapping where it is afterwards, unless the result has a name of its own."""
    ref: RangeRef = values["range"]
    start, nr_pages = _pages(world, actor, ref)
    flags, addr = _bits(_MREMAP_FLAGS, values), values.get("addr", 0)
    flags |= mremap.MREMAP_FIXED | mremap.MREMAP_MAYMOVE if addr else 0
    new_pages = -(-values["size"] // PAGE_SIZE)
    memory, task = world.kernel.memory, world.task(actor)
    new = check(mremap.mremap(memory, task, start, nr_pages, new_pages, flags, addr >> PAGE_SHIFT))
    name = values["result"] or ref.name
    world.mappings[actor, name] = Mapped(actor, new << PAGE_SHIFT, new_pages * PAGE_SIZE)


_MMAP_WORDS = "[readonly|noaccess|populate|locked|noreplace]..."
VERBS = [
    (
        f"mmap SIZE [shared] [at ADDR:NUMBER] {_MMAP_WORDS}",
        _mmap,
        "`NAME = mmap 64 pages`: anonymous memory, private or shared; at a fixed address, which noreplace "
        "must find free",
    ),
    (
        f"mmap file FILE [shared] [from FIRST:NUMBER] [SIZE] {_MMAP_WORDS}",
        _mmap_file,
        "`NAME = mmap file f`: a file, from page FIRST on; private unless shared",
    ),
    ("mprotect RANGE noaccess|readonly|writeonly|readwrite", _mprotect, "mprotect(2)"),
    ("mlock RANGE [onfault]", _mlock, "mlock(2), mlock2(2)"),
    ("munlock RANGE", _munlock, "munlock(2)"),
    ("mlockall [current|future|onfault]...", _mlockall, "mlockall(2)"),
    ("munlockall", _munlockall, "munlockall(2)"),
    (
        "mremap RANGE to SIZE [maymove|dontunmap]... [at ADDR:NUMBER]",
        _mremap,
        "mremap(2); `NAME = mremap ...` names what it gives, otherwise the old name stands for it",
    ),
]
