"""What random programs are made of: regions, pieces of them, node lists, policies."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, PREFERRED_MANY, WEIGHTED = range(7)
STATIC, RELATIVE = 32768, 16384
REGION_PAGES = (8, 16, 33, 64, 200, 512, 700)
FILE_PAGES = (64, 32, 128)
LARGE_FILE, LARGE_FILE_PAGES = 3, 2048
DONTNEED, FREE, COLD, PAGEOUT, WILLNEED, RANDOM_READ, SEQUENTIAL = 4, 8, 20, 21, 3, 1, 2


Step = Callable[["Builder"], None]


class Builder:
    """A program under construction, and the regions that it has."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.ops: list[str] = ["cpu 0"]
        self.regions: dict[int, int] = {}  # number: pages
        #: The file that the program reads, its size, and what was read last: first page, pages.
        self.file = 0
        self.file_pages = 0
        self.last = (0, 0)

    def add(self, *ops: str) -> None:
        self.ops += ops

    def run(self, steps: list[tuple[int, Step]], count: int) -> None:
        """So many steps, each by its weight."""
        weights = [weight for weight, _ in steps]
        for _ in range(count):
            self.random.choices([step for _, step in steps], weights)[0](self)

    def drop(self) -> None:
        """Drop the cache, under a policy that does not interleave."""
        policies = [op.split()[1] for op in self.ops if op.startswith("setpol")]
        if policies and int(policies[-1]) & 255 == INTERLEAVE:
            self.add("setpol 0 -")
        self.add("drop")

    def chance(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def pick(self) -> int:
        return self.random.choice(list(self.regions))

    def part(self, pages: int, whole_percent: int = 40) -> tuple[int, int]:
        """A piece of so many pages: (offset, pages)."""
        if self.chance(whole_percent):
            return 0, pages
        offset = self.random.randrange(pages)
        return offset, self.random.randint(1, min(pages - offset, self.random.choice((9, 50, 600))))

    def span(self) -> str:
        """A piece of a region, as three arguments."""
        region = self.pick()
        offset, pages = self.part(self.regions[region])
        return f"{region} {offset} {pages}"

    def nodes(self, wild: bool = True) -> str:
        """A node list; now and then an empty one, or one with nodes that are not there."""
        found = self.random.sample(range(4), self.random.choice((1, 1, 2, 2, 3, 4)))
        if wild and self.chance(4):
            found = self.random.choice(([], found, found, []))
            found += self.random.sample((4, 5, 7), self.random.choice((0, 1, 1, 2)))
        return ",".join(str(nid) for nid in sorted(found)) or "-"

    def policy(self, wild: bool = True, modes: tuple[int, ...] = (1, 2, 2, 3, 3, 5)) -> str:
        """Mode and nodes of a policy."""
        if wild and self.chance(5):
            mode = self.random.choice((6, 9, 17, *modes)) | self.random.choice(
                (0, STATIC, RELATIVE, STATIC | RELATIVE)
            )
            return f"{mode} {self.nodes()}"
        flags = self.random.choice((0, 0, 0, 0, STATIC, RELATIVE))
        if self.chance(18):
            mode = self.random.choice((DEFAULT, LOCAL)) | flags
            return f"{mode} {self.nodes() if wild and self.chance(7) else '-'}"
        mode = self.random.choice(modes) | flags
        if mode & 255 == PREFERRED and self.chance(10):
            return f"{mode} -"
        return f"{mode} {self.nodes(wild)}"

    def look(self) -> None:
        """Where is everything?"""
        self.add(*(f"where {region} 0 {pages}" for region, pages in sorted(self.regions.items())))

    def do_look(self, verb: str, span: str, *rest: str) -> None:
        """An op on a piece, then where its pages are."""
        self.add(" ".join((verb, span, *rest)), f"where {span}")
