"""Random programs whose arguments are all that the ops can say: holes, empty ranges, ends of files, nodes that are
not there, modes, flags and advice that mean nothing.
"""

from __future__ import annotations

from random import Random

from oracle_programs import FILE_PAGES, RELATIVE, STATIC, Builder, Step

_REGIONS = 3
_PAGES = (1, 8, 33, 64, 520)
#: Modes that a task may have: a new mapping takes page tables, and so turns of a task that interleaves.
_TASK_MODES = (0, 1, 2, 4, 5, 6, 7, 9, 255, 1 << 13, -1)
_BITS = (0, 0, 0, STATIC, RELATIVE, STATIC | RELATIVE)


def _span(b: Builder) -> str:
    """A piece of a region, or what is behind it; for files not up to the guard that the recorder keeps."""
    far = b.ops[1] != "drop"
    offset = b.random.choice((0, 0, 0, 1, 7, 20, 60, *((511, 512, 600) if far else (127, 130))))
    pages = b.random.choice((0, 1, 1, 2, 5, 8, 16, 33, 64, 100, *((520, 700) if far else (128, 200))))
    return f"{b.random.randrange(_REGIONS + 1)} {offset} {pages}"


def _nodes(b: Builder) -> str:
    pool = (0, 1, 2, 3) * 4 + (4, 7, 9, 31, 62)
    chosen = {b.random.choice(pool) for _ in range(b.random.choice((0, 1, 1, 2, 2, 3, 5)))}
    return ",".join(map(str, sorted(chosen))) or "-"


def _node(b: Builder) -> int:
    return b.random.choice((0, 1, 2, 3, 0, 1, 2, 3, -1, -2, 4, 63, 64, 1023, 1024, 5000))


def _again(b: Builder) -> None:
    kind = b.random.choice(("pa", "sa"))
    b.add("setpol 0 -", f"mmap {b.random.randrange(_REGIONS)} {b.random.choice(_PAGES)} {kind}")


def _file_again(b: Builder) -> None:
    kind = b.random.choice(("fs", "fp"))
    pages, region = b.random.choice((1, 32, 64, 100, 200)), b.random.randrange(_REGIONS)
    b.add(f"munmap {region} 0 512", f"fmap {region} {b.random.randrange(3)} {pages} {kind}")


def _policy(b: Builder) -> None:
    b.add(f"setpol {b.random.choice(_TASK_MODES) | b.random.choice(_BITS)} {_nodes(b)}", "getpol")


def _mbind(b: Builder) -> None:
    span, mode = _span(b), b.random.choice((*_TASK_MODES[:7], 3, 3)) | b.random.choice(_BITS)
    flags = b.random.choice((0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 16, 32, 128, -1))
    b.add(f"mbind {span} {mode} {_nodes(b)} {flags}", f"where {span}")


def _touch(b: Builder) -> None:
    b.do_look("touch", _span(b), b.random.choice("wwwr"))


def _faults(b: Builder) -> None:
    b.do_look("faults", _span(b), b.random.choice("rrw"))


def _move(b: Builder) -> None:
    span = _span(b)
    b.add(f"move {span} {_node(b)} {b.random.choice((0, 2, 2, 2, 4, 6, 1, 8, -1))}", f"where {span}")


def _migrate(b: Builder) -> None:
    b.add(f"migrate {_nodes(b)} {_nodes(b)}")
    b.look()


def _madvise(b: Builder) -> None:
    b.add(f"madvise {_span(b)} {b.random.choice((4, 4, 4, 4, 0, 1, 2, 20, 5, 7, 99, -1))}")


def _munmap(b: Builder) -> None:
    b.add(f"munmap {_span(b)}")


def _ask(b: Builder) -> None:
    b.add(b.random.choice(("getpol", "allowed", f"getpolat {' '.join(_span(b).split()[:2])}")))


def _forkwrite(b: Builder) -> None:
    b.do_look("forkwrite", _span(b))


def _cpuset(b: Builder) -> None:
    b.add(f"cpuset {_nodes(b)}", "allowed", "getpol")


def _cpu(b: Builder) -> None:
    b.add(f"cpu {b.random.randrange(2)}")


def _fread(b: Builder) -> None:
    offset, pages = b.random.choice((0, 5, 31, 32, 64, 127, 200)), b.random.choice((0, 1, 5, 32, 64, 128))
    b.add(f"fread {b.random.randrange(3)} {offset} {pages}")


def _drop(b: Builder) -> None:
    b.add("drop")


def ranges(random: Random) -> list[str]:
    """The ops of the first two kinds, with any argument that they can be given."""
    b = Builder(random)
    files = b.chance(40)
    steps: list[tuple[int, Step]] = [
        (12, _touch),
        (6, _policy),
        (10, _mbind),
        (6, _move),
        (3, _migrate),
        (4, _madvise),
        (4, _munmap),
        (4, _ask),
        (2, _cpu),
        (2, _cpuset),
    ]
    if files:
        b.add("drop")
        steps += [(8, _fread), (10, _faults), (3, _file_again), (2, _drop)]
    else:
        steps += [(3, _again), (3, _forkwrite)]
    for region in range(_REGIONS):
        b.regions[region] = random.choice(FILE_PAGES if files else _PAGES)
        kinds = ("fs", "fp") if files else ("pa", "pa", "sa")
        source = f"{random.randrange(3)} " if files else ""
        b.add(f"{'fmap' if files else 'mmap'} {region} {source}{b.regions[region]} {random.choice(kinds)}")
    b.run(steps, random.randint(8, 30))
    b.look()
    return b.ops
