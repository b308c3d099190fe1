"""Records a real program: what it accesses, page by page, and what its data pages hold, as one `.pmtrace` file.

    python record.py --out redis.pmtrace --name redis --accesses 1000000 --images 4 -- redis-server --port 0 ...

The program runs under valgrind's lackey with an empty environment in an empty folder. A command given by
`--feed` writes its standard input; one given by `--driver` runs beside it; both run in the same folder and
with an empty environment too. Recording begins when a file named `start` appears in that folder (at once
with `--from-the-start`), so that loading can be left out. Images are taken at equal distances, the first at
the beginning, the last at the end: the program is stopped, what it has traced by then is read to the last
line, and its memory is copied. Pages in which `privmem.cluster.traces_private` finds a string of the
machine or its user are blanked in all images. Needs valgrind, and Linux on x86-64.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import resource
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

import numpy as np
from lackey_filter import LackeyFilter
from process_memory import PAGE_BYTES, STACK_BYTES, read_pages

from privmem.cluster.traces import TraceHeader, distinct_rows, write_trace
from privmem.cluster.traces_private import find_private, private_pages

_PIPE_BYTES = 1 << 20


@dataclass(slots=True)
class Recording:
    """What was caught: accesses (uint64, pages of the address space), images, and when each was taken."""

    accesses: list[np.ndarray] = field(default_factory=list)
    images: list[dict[int, bytes]] = field(default_factory=list)
    image_at: list[int] = field(default_factory=list)
    nr_seen: int = 0


def main() -> int:
    """Record as the command line says."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    with tempfile.TemporaryDirectory(prefix="rec") as folder:
        recording = _record(args, folder)
    _save(args, recording)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Record a program's page accesses and page contents.")
    parser.add_argument("--out", required=True)
    parser.add_argument("--name", required=True, help="name of the recording, in its header")
    parser.add_argument("--program-version", default="", help="as the header shall say it")
    parser.add_argument("--workload", default="", help="what the program did, in words, for the header")
    parser.add_argument(
        "--accesses", type=int, default=1_000_000, help="accesses to record, after the filter"
    )
    parser.add_argument("--images", type=int, default=4, help="page images to take, at least 2")
    parser.add_argument("--ways", type=int, default=8, help="pages in the filter's buffer")
    parser.add_argument("--feed", help="command whose standard output is the program's standard input")
    parser.add_argument("--driver", help="command that puts the program under load from outside")
    parser.add_argument("--from-the-start", action="store_true", help="do not wait for the file `start`")
    parser.add_argument("program", nargs="+", help="after --: the program and its arguments")
    return parser.parse_args()


def _record(args: argparse.Namespace, folder: str) -> Recording:
    trace_in, trace_out = os.pipe()
    fcntl.fcntl(trace_in, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    children: list[subprocess.Popen[bytes]] = []
    try:
        feed = subprocess.DEVNULL
        if args.feed:
            children.append(_start(shlex.split(args.feed), folder, stdout=subprocess.PIPE))
            assert children[0].stdout is not None
            feed = children[0].stdout.fileno()
        command = ["valgrind", "--tool=lackey", "--trace-mem=yes", "--basic-counts=no", "--vgdb=no"]
        path = shutil.which(args.program[0])
        if path is None:
            sys.exit(f"{args.program[0]}: no such program")
        command += [f"--log-fd={trace_out}", path, *args.program[1:]]
        program = _start(command, folder, stdin=feed, stdout=subprocess.DEVNULL, pass_fds=(trace_out,))
        children.append(program)
        os.close(trace_out)
        if args.driver:
            children.append(_start(shlex.split(args.driver), folder))
        start = None if args.from_the_start else Path(folder, "start")
        return _follow(program.pid, trace_in, LackeyFilter(args.ways), start, args.accesses, args.images)
    finally:
        os.close(trace_in)
        for child in children:
            child.kill()
            child.wait()


def _start(command: list[str], folder: str, **streams: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=folder, env={}, **streams)  # type: ignore[call-overload, no-any-return]


def _follow(
    pid: int, trace_in: int, lackey: LackeyFilter, start: Path | None, nr_accesses: int, nr_images: int
) -> Recording:
    """Read the trace to the end, and take each image when its access has come."""
    recording = Recording()
    due = [nr_accesses * image // (nr_images - 1) for image in range(nr_images)]
    kept, recorded, told = 0, False, time.monotonic()
    while len(recording.images) < nr_images:
        text = os.read(trace_in, _PIPE_BYTES)
        if not text:
            print(f"the program ended after {kept} accesses", file=sys.stderr)
            break
        fresh = lackey.feed(text)
        recorded = recorded or start is None or start.exists()
        if recorded:
            recording.accesses.append(fresh)
            kept += len(fresh)
            if kept >= due[len(recording.images)]:
                rest = lackey.feed(_stop(pid, trace_in))
                recording.accesses.append(rest)
                kept += len(rest)
                if not recording.images:  # what came before the first image belongs to no image
                    recording.accesses, kept, lackey.nr_seen = [], 0, 0
                recording.images.append(read_pages(pid))
                recording.image_at.append(kept)
                os.kill(pid, signal.SIGCONT)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(
                f"{lackey.nr_seen} accesses seen, {kept} kept, {len(recording.images)} images",
                file=sys.stderr,
            )
    recording.nr_seen = lackey.nr_seen
    return recording


def _stop(pid: int, trace_in: int) -> bytes:
    """Stop the process, wait until it has stopped, and return all that it had traced by then."""
    os.kill(pid, signal.SIGSTOP)
    status = Path("/proc") / str(pid) / "status"
    pieces: list[bytes] = []
    stopped = False
    while True:
        while select.select([trace_in], [], [], 0)[0] and (piece := os.read(trace_in, _PIPE_BYTES)):
            pieces.append(piece)
        if stopped:
            return b"".join(pieces)
        # Full pipes are emptied above, so a process that waits in a write can reach its stop.
        stopped = "State:\tT" in status.read_text()
        time.sleep(0.01)


def _save(args: argparse.Namespace, recording: Recording) -> None:
    """Number the pages densely, blank what must not travel, and write the trace."""
    accesses = np.concatenate(recording.accesses)
    held = np.array(sorted(set().union(*recording.images)), np.uint64)
    in_data = np.isin(accesses >> np.uint64(1), held)
    pages, dense = np.unique(accesses[in_data] >> np.uint64(1), return_inverse=True)
    packed = (dense.astype(np.uint32) << np.uint32(1)) | (accesses[in_data] & np.uint64(1)).astype(np.uint32)
    names = (socket.gethostname(), getuser())
    zero = bytes(PAGE_BYTES)
    images = []
    for image in recording.images:
        content = bytearray().join(image.get(int(page), zero) for page in pages)
        images.append(np.frombuffer(content, np.uint8).reshape(-1, PAGE_BYTES))
    blanked = private_pages(images, names)
    finds = Counter(what for _, _, what, _ in find_private(images[0].tobytes(), names))
    print(f"blanked {len(blanked)} pages; found in image 0: {dict(finds)}", file=sys.stderr)
    for image in images:
        image[blanked] = 0
    before = np.concatenate([[0], np.cumsum(in_data)])
    ways = args.ways
    header = TraceHeader(
        name=args.name,
        nr_pages=len(pages),
        program=" ".join(Path(word).name if "/" in word else word or "''" for word in args.program),
        program_version=args.program_version,
        workload=args.workload,
        filters=(
            "valgrind lackey: loads and stores, no instruction fetches; over a page boundary counts for both",
            f"kept {len(accesses)} of {recording.nr_seen}: page not among the {ways} last used pages, "
            "or first store since it came among them",
            f"kept {len(packed)} of {len(accesses)}: in anonymous private memory other than stacks and .bss, "
            "on a page that was not zero in all images",
            "pages numbered densely by ascending address",
        ),
        blanked_pages=len(blanked),
        image_at=tuple(int(before[at]) for at in recording.image_at),
    )
    for _, _, what, text in find_private(repr(header).encode(), names):
        sys.exit(f"the header would hold a {what}: {text!r}")
    rows, table = distinct_rows(images)
    written = write_trace(args.out, header, packed, (rows, table))
    print(f"{args.out}: {written}, {os.path.getsize(args.out)} bytes")


if __name__ == "__main__":
    sys.exit(main())
