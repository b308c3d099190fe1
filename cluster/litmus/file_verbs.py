"""What a process does to files in a litmus test: open, read, write, and what it says of how it will read."""

from __future__ import annotations

from typing import Any

from privmem.cluster.litmus.values import FADVICES
from privmem.cluster.litmus.world import Stuck, World, check, run_lengths
from privmem.nodeagent.host import file_io, filemap
from privmem.nodeagent.host.drivers.anondax import AnonDax
from privmem.nodeagent.host.pagecache import MemObject
from privmem.scheduler.abi import PAGE_SHIFT, PAGE_SIZE

Values = dict[str, Any]


def open_device(device: object) -> MemObject:
    """Open an anondax device file. Raises Stuck for another device."""
    if not isinstance(device, AnonDax):
        raise Stuck("only an anondax device is opened by name")
    opened = device.open()
    if isinstance(opened, int):
        check(opened)
    assert isinstance(opened, MemObject)
    return opened


def _open_device(world: World, _actor: str, values: Values) -> None:
    world.opened[values["result"]] = open_device(world.devices[values["device"]])


def _open(world: World, actor: str, values: Values) -> None:
    holder = world.file(values["file"])
    mode = "r" if "readonly" in values else "w" if "writeonly" in values else "r+"
    world.handles[values["result"]] = world.process(actor).open(holder, mode, "direct" in values)


def _close(world: World, actor: str, values: Values) -> None:
    handle = world.handles.get(values["file"])
    if handle is None:
        raise Stuck(f"{values['file']} was not opened by `NAME = open file ...`")
    world.process(actor).close(handle)


def _pages(world: World, values: Values) -> tuple[int, int]:
    first = values.get("first", 0)
    whole = world.file(values["file"]).nr_pages - first
    return first, -(-values["size"] // PAGE_SIZE) if "size" in values else max(0, whole)


def _read(world: World, actor: str, values: Values) -> int:
    """Page by page, or in one call; a handle of its own is read in one call."""
    name = values["file"]
    memory, task, pages = world.kernel.memory, world.task(actor), _pages(world, values)
    if "at_once" in values or name in world.handles:
        return check(file_io.read(memory, task, world.open_file(name), *pages))
    return check(filemap.read_pages(memory, task, world.file(name), *pages))


def _write(world: World, actor: str, values: Values) -> int:
    file = world.open_file(values["file"])
    return check(file_io.write(world.kernel.memory, world.task(actor), file, *_pages(world, values)))


def _fsync(world: World, actor: str, values: Values) -> None:
    world.process(actor).fsync(world.open_file(values["file"]))


def _fadvise(world: World, actor: str, values: Values) -> None:
    advice = next(number for word, number in FADVICES.items() if word in values)
    first, size = values.get("first", 0), values.get("size", 0)
    file = world.open_file(values["file"])
    world.process(actor).posix_fadvise(file, first << PAGE_SHIFT, size, advice)


def _truncate(world: World, actor: str, values: Values) -> None:
    world.process(actor).ftruncate(world.open_file(values["file"]), values["size"])


def _mincore(world: World, actor: str, values: Values) -> str:
    mapped = world.mapping(actor, values["range"])
    found = world.process(actor).mincore(mapped.addr, mapped.length)
    return run_lengths(["in" if there else "out" for there in found])


VERBS = [
    ("open DEVICE", _open_device, "`NAME = open dax`: open an anondax device file once"),
    (
        "open file FILE [readonly|writeonly|direct]...",
        _open,
        "`NAME = open file f`: an open file with readahead of its own; direct: O_DIRECT",
    ),
    ("close FILE", _close, "close(2) of a name that `open file` gave"),
    (
        "read FILE [from FIRST:NUMBER] [SIZE] [at_once]",
        _read,
        "pread(2), page by page unless at_once; gives the pages read",
    ),
    ("write FILE [from FIRST:NUMBER] [SIZE]", _write, "pwrite(2) of whole pages; gives the pages written"),
    ("fsync FILE", _fsync, "fsync(2)"),
    (
        f"fadvise FILE {'|'.join(FADVICES)} [from FIRST:NUMBER] [SIZE]",
        _fadvise,
        "posix_fadvise(2), to the end of the file unless a size is given",
    ),
    ("truncate FILE to SIZE", _truncate, "ftruncate(2)"),
    ("mincore RANGE", _mincore, "mincore(2): `in*4 out`"),
]
