"""What a process does to files in a litmus test: open, read, write, and what it says of how it will read."""

from __future__ import annotations

from typing import Any

from privmem.cluster.litmus.values import FADVICES
from privmem.cluster.litmus.world import Stuck, World, check, run_lengths
from privmem.nodeagent.host import file_io, filemap, user_copy
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


def _read_into(world: World, actor: str, values: Values) -> int:
    """A read that says where the data goes: into a buffer of the process."""
    memory, task, file = world.kernel.memory, world.task(actor), world.open_file(values["file"])
    mapped = world.mapping(actor, values["range"])
    start, nr_pages = mapped.addr >> PAGE_SHIFT, mapped.length >> PAGE_SHIFT
    done = check(file_io.read(memory, task, file, values.get("first", 0), nr_pages))
    copy = user_copy.direct_read if file.direct else user_copy.copy_to_user
    return check(copy(memory, task, start, done))


def _write_from(world: World, actor: str, values: Values) -> int:
    memory, task, file = world.kernel.memory, world.task(actor), world.open_file(values["file"])
    mapped = world.mapping(actor, values["range"])
    nr_pages = mapped.length >> PAGE_SHIFT
    done = check(user_copy.copy_from_user(memory, task, mapped.addr >> PAGE_SHIFT, nr_pages))
    return check(file_io.write(memory, task, file, values.get("first", 0), done))


def _splice(world: World, actor: str, values: Values) -> int:
    memory, file = world.kernel.memory, world.open_file(values["file"])
    return check(file_io.splice(memory, world.task(actor), file, *_pages(world, values)))


def _pipe(world: World, actor: str, values: Values) -> int:
    """The pipe has as much data as anybody wants to read."""
    mapped = world.mapping(actor, values["range"])
    start, nr_pages = mapped.addr >> PAGE_SHIFT, mapped.length >> PAGE_SHIFT
    copy = user_copy.copy_to_user if "read" in values else user_copy.copy_from_user
    return check(copy(world.kernel.memory, world.task(actor), start, nr_pages))


def _of_another(world: World, actor: str, values: Values) -> int:
    """ptrace, or process_vm_writev: pages of a process, for a debugger."""
    world.task(actor)
    mapped = world.mapping(actor, values["range"])
    task = world.task(mapped.process)
    start, nr_pages = mapped.addr >> PAGE_SHIFT, mapped.length >> PAGE_SHIFT
    write = user_copy.copy_to_user if "process_vm_writev" in values else user_copy.poke
    peek = "process_vm_readv" in values or "read" in values
    return check((user_copy.copy_from_user if peek else write)(world.kernel.memory, task, start, nr_pages))


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
    (
        "read_into RANGE FILE [from FIRST:NUMBER]",
        _read_into,
        "pread(2) into a buffer, as many pages as it has; with a file that was opened `direct` the device writes "
        "into the buffer: pages read",
    ),
    ("write_from RANGE FILE [from FIRST:NUMBER]", _write_from, "pwrite(2) from a buffer: pages written"),
    ("splice FILE [from FIRST:NUMBER] [SIZE]", _splice, "splice(2) of its pages into a pipe: how many"),
    ("pipe read|write RANGE", _pipe, "read(2) of a pipe into a buffer, or write(2) from it: pages copied"),
    (
        "ptrace read|write RANGE",
        _of_another,
        "a debugger reads or writes another's pages, `ptrace write B.mem`",
    ),
    ("process_vm_readv|process_vm_writev RANGE", _of_another, "the same by these calls, which force nothing"),
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
