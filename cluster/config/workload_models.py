"""What processes do and what their pages hold, as typed, frozen models; the rest is in `models.py`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from privmem.cluster.config.base import CAPACITY_MAX_BYTES, COUNT, COUNT_MAX, SEED, SHARE, Model
from privmem.cluster.config.fields import FilePath, Permille, Whole, size
from privmem.scheduler.abi import PAGE_SIZE

# --- page contents


class RecordingContent(Model):
    """The pages that the recording of a replay workload holds."""

    kind: Literal["recording"] = Field(description="The page images of the workload's recording.")
    literal: bool = Field(
        default=False,
        description="Whether pages travel to devices byte for byte, as those that programs wrote do, and not by "
        "description: the device knows their bytes alone, and sends them back when a page leaves it.",
    )


class GeneratorContent(Model):
    """Made-up pages with stated statistics."""

    kind: Literal["generator"] = Field(description="Pages with the statistics that are stated here.")
    zero_share_permille: Annotated[int, SHARE] = Field(
        default=100, description="Share of the pages that hold only zeros until they are written."
    )
    random_bytes: Annotated[int, Whole(0, PAGE_SIZE)] = Field(
        default=1024,
        alias="random_bytes",
        description="Bytes of a page that do not compress; the rest repeats.",
    )
    changed_bytes: Annotated[int, Whole(0, PAGE_SIZE)] = Field(
        default=64,
        alias="changed_bytes",
        description="Bytes that a write changes. The default is a cache line.",
    )
    seed: Annotated[int, SEED] = Field(default=0, description="Seed of the bytes.")
    literal: bool = Field(
        default=False,
        description="Whether pages travel to devices byte for byte, as those that programs wrote do, and not by "
        "description: the device knows their bytes alone, and sends them back when a page leaves it.",
    )


ContentConfig: TypeAlias = RecordingContent | GeneratorContent

# --- workloads


class ReplayWorkload(Model):
    """The accesses of a recorded program, in their order."""

    kind: Literal["replay"] = Field(description="The accesses of a recording.")
    recording: Annotated[str, FilePath(".pmtrace")] = Field(
        description="The recording's file, relative to the configuration's folder."
    )
    repeat: Annotated[int, Whole(1, 1_000_000)] = Field(default=1, description="How often it is replayed.")
    start: Annotated[int, Whole(0, COUNT_MAX)] = Field(
        default=0, description="Accesses at the recording's start that the first replay skips."
    )


class _Synthetic(Model):
    """What every synthetic workload has."""

    kind: str  # stated by each workload; here for its place, the first
    size_bytes: Annotated[int, size(PAGE_SIZE, CAPACITY_MAX_BYTES)] = Field(
        description="Memory that it touches; a multiple of the 4 KiB page."
    )
    accesses: Annotated[int, COUNT] = Field(description="Accesses until it ends.")
    write_share_permille: Annotated[int, SHARE] = Field(
        default=0, description="Share of the accesses that write."
    )
    seed: Annotated[int, SEED] = Field(
        default=0, description="Seed of its draws; the run's seed, the host and the process enter as well."
    )


class ZipfWorkload(_Synthetic):
    """Pages by popularity: the k-th most popular is drawn in proportion to k ** -theta."""

    kind: Literal["zipf"] = Field(description="Few pages take most accesses.")
    theta_permille: Annotated[int, Permille(0, 4000)] = Field(
        default=990, description="Exponent of the popularity; 0 is uniform. The default is that of YCSB."
    )


class UniformWorkload(_Synthetic):
    """Every page as likely as every other."""

    kind: Literal["uniform"] = Field(description="All pages alike.")


class ScanWorkload(_Synthetic):
    """One page after the other, from the start again at the end."""

    kind: Literal["scan"] = Field(description="Pages in order, round and round.")
    stride_pages: Annotated[int, Whole(1, 1 << 20)] = Field(
        default=1, description="Pages from one access to the next."
    )


class HotSetWorkload(_Synthetic):
    """A hot range of pages that takes most accesses and moves on."""

    kind: Literal["hotset"] = Field(description="A hot range that moves.")
    hot_share_permille: Annotated[int, Permille(1, 1000)] = Field(
        default=100, description="Share of the pages that are hot."
    )
    hot_access_share_permille: Annotated[int, SHARE] = Field(
        default=900, description="Share of the accesses that go to hot pages."
    )
    period_accesses: Annotated[int, COUNT] = Field(
        default=100_000, description="Accesses between two moves of the hot range."
    )
    move_pages: Annotated[int, Whole(0, 1 << 30)] = Field(
        default=64, description="Pages by which the hot range moves; 0 keeps it in place."
    )


WorkloadConfig: TypeAlias = ReplayWorkload | ZipfWorkload | UniformWorkload | ScanWorkload | HotSetWorkload
