"""What processes do and what their pages hold, as typed, frozen models; the rest is in `models.py`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from privmem.cluster.config.base import (
    CAPACITY_MAX_BYTES,
    COUNT,
    COUNT_MAX,
    NODE_ID,
    S_NS,
    SEED,
    SHARE,
    Model,
)
from privmem.cluster.config.fields import FilePath, Permille, Whole, size, time
from privmem.scheduler.abi import PAGE_SIZE

#: Phases of a content; as in nodeagent/content.py, which this does not load for the compiled code behind it.
PHASES_MAX = 15

# --- page contents


class RecordingContent(Model):
    """The pages that the recording of a replay workload holds."""

    kind: Literal["recording"] = Field(description="The page images of the workload's recording.")
    literal: bool = Field(
        default=False,
        description="Whether pages travel to devices byte for byte, as those that programs wrote do, and not by "
        "description: the device knows their bytes alone, and sends them back when a page leaves it.",
    )


class ContentPhase(Model):
    """A time from which on a program writes pages of another kind."""

    at_ns: Annotated[int, time(0, 86_400 * S_NS)] = Field(description="When it begins, in virtual time.")
    random_bytes: Annotated[int, Whole(0, PAGE_SIZE)] = Field(
        alias="random_bytes", description="Bytes that do not compress of a page that is written from then on."
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
    phases: Annotated[tuple[ContentPhase, ...], Field(max_length=PHASES_MAX)] = Field(
        default=(),
        description="Times from which on what is written is of another kind, rising; a page that is not written "
        "stays as it is.",
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


class GpuWorkload(Model):
    """A program that computes on a GPU over a coherent link, and the driver that moves its buffers."""

    kind: Literal["gpu"] = Field(description="Kernels on a GPU, whose driver moves their buffers.")
    node: Annotated[int, NODE_ID] = Field(description="The private node that is the GPU's memory.")
    size_bytes: Annotated[int, size(PAGE_SIZE, CAPACITY_MAX_BYTES)] = Field(
        description="Buffers of the program; a multiple of the 4 KiB page."
    )
    window_bytes: Annotated[int, size(PAGE_SIZE, CAPACITY_MAX_BYTES)] = Field(
        description="Part of the buffers that one launch works on: the driver moves it onto `node` before, and "
        "back after; the next launch takes the next part. A multiple of the 4 KiB page."
    )
    dma_bytes: Annotated[int, size(0, CAPACITY_MAX_BYTES)] = Field(
        default=0,
        description="DMA buffers beside those, put onto `node` at the start and pinned there for long; where the "
        "isolation design has no such pin, they are pinned in ordinary memory. A multiple of the 4 KiB page.",
    )
    launches: Annotated[int, COUNT] = Field(description="Kernels launched until it ends.")
    launch_accesses: Annotated[int, Whole(1, 1 << 40)] = Field(
        description="Accesses of one kernel, to any page of its part."
    )
    write_share_permille: Annotated[int, SHARE] = Field(
        default=0, description="Share of a kernel's accesses that write."
    )
    seed: Annotated[int, SEED] = Field(
        default=0, description="Seed of its draws; the run's seed, the host and the process enter as well."
    )


class MessagesWorkload(Model):
    """A program that sends messages through a network accelerator with memory of its own."""

    kind: Literal["messages"] = Field(description="Messages, each in buffers that the network stack takes.")
    node: Annotated[int, NODE_ID] | None = Field(
        default=None,
        description="The private node of the target device, which its buffers are on while there is room; local "
        "DRAM otherwise, as for a device without a node.",
    )
    size_bytes: Annotated[int, size(PAGE_SIZE, CAPACITY_MAX_BYTES)] = Field(
        description="Memory of the program itself; a multiple of the 4 KiB page."
    )
    messages: Annotated[int, COUNT] = Field(description="Messages until it ends.")
    message_bytes: Annotated[int, size(PAGE_SIZE, 1 << 30)] = Field(
        default=PAGE_SIZE, description="Buffers of a message; a multiple of the 4 KiB page."
    )
    message_accesses: Annotated[int, Whole(1, 1 << 40)] = Field(
        default=16, description="Accesses of the program to its own memory for one message."
    )
    in_flight: Annotated[int, Whole(1, 1 << 20)] = Field(
        default=16,
        description="Messages whose buffers are held at a time; the oldest is sent and freed next.",
    )
    burst: Annotated[int, Whole(0, 1 << 20)] = Field(
        default=0,
        description="Messages in flight while a burst lasts, which is as many messages; 0: no bursts.",
    )
    burst_every: Annotated[int, COUNT] = Field(
        default=1000, description="Messages from the start of one burst to that of the next."
    )
    write_share_permille: Annotated[int, SHARE] = Field(
        default=0, description="Share of the accesses that write."
    )
    seed: Annotated[int, SEED] = Field(
        default=0, description="Seed of its draws; the run's seed, the host and the process enter as well."
    )


WorkloadConfig: TypeAlias = (
    ReplayWorkload
    | ZipfWorkload
    | UniformWorkload
    | ScanWorkload
    | HotSetWorkload
    | GpuWorkload
    | MessagesWorkload
)
