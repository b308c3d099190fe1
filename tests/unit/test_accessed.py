"""Marks of use: referenced first, active next."""

from privmem.nodeagent.host import filemap
from privmem.nodeagent.host.accessed import mark_accessed
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PG_ACTIVE, PG_LRU, PG_REFERENCED


def read_file(pages):
    """A kernel, a process that has read a file once, and the frames of its pages."""
    kernel = Kernel([NodeBoot(0, 4096, cpus=(0, 1))], ((10,),))
    file = kernel.create_file("f", pages)
    process = kernel.spawn()
    filemap.read_pages(kernel.memory, process.task, file, 0, pages)
    return kernel, process.task, file


def marks(kernel, file):
    flags = kernel.memory.frames.flags
    return [int(flags[file.pages[i]]) & (PG_ACTIVE | PG_REFERENCED) for i in sorted(file.pages)]


def test_a_second_read_activates():
    kernel, task, file = read_file(20)
    memory = kernel.memory
    assert marks(kernel, file) == [PG_REFERENCED] * 20
    assert memory.lru_sizes(0) == [0, 0, 20, 0]
    filemap.read_pages(memory, task, file, 3, 2)
    assert memory.lru_sizes(0) == [0, 0, 18, 2]
    assert marks(kernel, file)[2:6] == [PG_REFERENCED, PG_ACTIVE, PG_ACTIVE, PG_REFERENCED]
    assert memory.vmstat.count["pgactivate"] == 2


def test_reading_on_in_the_same_page_is_no_new_use():
    kernel, task, file = read_file(2)
    filemap.read_pages(kernel.memory, task, file, 1, 1)
    assert marks(kernel, file) == [PG_REFERENCED, PG_REFERENCED]


def test_a_page_in_the_batch_of_another_cpu_cannot_be_activated():
    kernel, _, file = read_file(2)
    mark_accessed(kernel.memory, 1, file.pages[0])
    mark_accessed(kernel.memory, 0, file.pages[1])
    assert marks(kernel, file) == [0, PG_ACTIVE]


def test_a_page_that_waits_can_be_activated_again():
    """It takes a second place in the batch, as in the kernel: it is not active yet."""
    kernel, _, file = read_file(2)
    memory, pfn = kernel.memory, file.pages[0]
    memory.lru_batches.drain(0)
    for _ in range(3):
        mark_accessed(memory, 0, pfn)
    assert memory.lru_batches.snapshot()[2] == [[0, [pfn, pfn]]]


def test_frames_on_no_list_are_left_alone():
    kernel, _, file = read_file(1)
    pfn = file.pages[0]
    kernel.memory.lru_del(pfn)
    before = int(kernel.memory.frames.flags[pfn])
    mark_accessed(kernel.memory, 0, pfn)
    assert int(kernel.memory.frames.flags[pfn]) == before and not before & PG_LRU


def test_a_mapping_that_goes_marks_what_it_used():
    kernel, task, file = read_file(4)
    process = kernel.processes[task.pid]
    addr = process.mmap(4 * 4096, shared=True, file=file)
    process.touch(addr, 2 * 4096, write=False)
    process.munmap(addr, 4 * 4096)
    assert marks(kernel, file) == [PG_ACTIVE, PG_ACTIVE, PG_REFERENCED, PG_REFERENCED]
    assert not kernel.memory.lru_batches.is_activating(file.pages[0])  # the unmapping drains
