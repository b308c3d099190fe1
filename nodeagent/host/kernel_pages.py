"""Which frames the kernel holds for itself, and why. State only, so that `Memory` can hold it; kmem.py and
pagetables.py take and give back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class KernelPages:
    """Frames of the kernel's own."""

    #: Frame -> who holds it, in words.
    holders: dict[int, str] = field(default_factory=dict)
    #: (address space, number of the stretch of 512 pages) -> frame of its leaf page table.
    page_tables: dict[tuple[int, int], int] = field(default_factory=dict)

    def of(self, holder: str) -> list[int]:
        """Frames of one holder, ascending."""
        return sorted(pfn for pfn, who in self.holders.items() if who == holder)

    def snapshot(self) -> dict[str, Any]:
        """Plain form."""
        tables = [[mm_id, stretch, pfn] for (mm_id, stretch), pfn in sorted(self.page_tables.items())]
        return {"holders": dict(sorted(self.holders.items())), "page_tables": tables}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        self.holders = {int(pfn): str(who) for pfn, who in snapshot["holders"].items()}
        self.page_tables = {(int(mm), int(at)): int(pfn) for mm, at, pfn in snapshot["page_tables"]}
