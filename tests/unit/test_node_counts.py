"""Pages of a node by use, as its meminfo and vmstat show them."""

MACHINE = {
    "nodes": {
        "D0": {"memory": "16MiB", "cpus": [0]},
        "P": {"memory": "1MiB", "private": ["user_numa", "reclaim", "user_write", "migration"]},
    },
    "files": {"f": "16 pages"},
}


def kilobytes(machine, node):
    lines = machine.look(f"text of /sys/devices/system/node/node{node}/meminfo").splitlines()
    rows = [line.split() for line in lines]
    return {row[2].rstrip(":"): int(row[3]) for row in rows if row[3] != "0"}


def test_each_use_has_its_line(privmem_machine):
    machine = privmem_machine(MACHINE, design="caps")
    for step in (
        "a = mmap 8 pages",
        "mbind a bind P",
        "touch a",
        "fork",
        "s = mmap 4 pages shared",
        "touch s",
        "f = mmap file f",
        "load f[0:2]",
        "read f",
        "mlock f[0]",  # of a private mapping that may be written: it gets its copy, which is anonymous
    ):
        machine.do(f"A: {step}" if step != "fork" else "A: B = fork")
    machine.do("driver: alloc P")
    assert kilobytes(machine, "P") == {
        "MemTotal": 1024, "MemFree": 988, "MemUsed": 36, "Inactive": 32, "Inactive(anon)": 32, "AnonPages": 32,
    }  # fmt: skip
    assert kilobytes(machine, "D0") == {
        "MemTotal": 16384, "MemFree": 16292, "MemUsed": 92, "Inactive": 80, "Inactive(anon)": 16,
        "Inactive(file)": 64, "Unevictable": 4, "FilePages": 80, "Mapped": 20, "AnonPages": 4, "Shmem": 16,
    }  # fmt: skip


def test_the_machine_sums_what_all_nodes_have(privmem_machine):
    machine = privmem_machine(MACHINE, design="caps")
    machine.do("A: a = mmap 8 pages")
    machine.do("A: mbind a bind P")
    machine.do("A: touch a")
    text = machine.look("text of /proc/meminfo")
    assert "AnonPages: 32 kB" in text
    assert "FilePages" not in text
    assert "MemUsed" not in text
    assert machine.look("node vmstat nr_anon_pages of P") == 8
