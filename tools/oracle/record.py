"""Records what a real Linux answers to random programs, in the format of `privmem oracle`. docs/oracle.md says how.

    python3 tools/oracle/record.py --kernel linux-image-6.1.0-50-amd64_*.deb --kind mempolicy --count 100 \
        --seed 7 --out new.jsonl.gz
    python3 tools/oracle/record.py --kernel ... --again tests/data/linux_mempolicy.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import oracle_boot as boot
import oracle_image as image
import oracle_kinds as kinds

Ops = list[tuple[str, list[str]]]


def main() -> int:
    """Record, or record again and compare; 1 when an answer differs from the recording."""
    parser = argparse.ArgumentParser(description="Record what a real Linux answers.")
    parser.add_argument("--kernel", type=Path, required=True, metavar="DEB", help="a linux-image-*.deb")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--kind", choices=list(kinds.KINDS), help="record random programs of this kind")
    what.add_argument("--programs", type=Path, metavar="FILE", help="record the programs of a recording")
    what.add_argument(
        "--again", type=Path, metavar="FILE", help="run a recording again, and compare the answers"
    )
    parser.add_argument("--count", type=int, default=100, metavar="N", help="programs to make (default: 100)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the programs (default: 1)")
    parser.add_argument(
        "--boots", type=int, default=2, metavar="N", help="boots that must agree (default: 2)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the recording; gzip when its name ends in .gz"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep unpacked kernels and images here")
    args = parser.parse_args()
    if args.out is None and args.again is None:
        parser.error("--out is needed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kernel = image.unpack_kernel(args.kernel, folder)
        if args.again is not None:
            return _again(kernel, folder, _read(args.again))
        if args.programs is not None:
            found = _read(args.programs)
            programs = [(entry["name"], entry["ops"]) for entry in found]
            setup = _setup_of(found[0])
        else:
            programs = kinds.programs(args.kind, args.count, args.seed)
            setup = kinds.KINDS[args.kind].setup
        lines = record(kernel, folder, programs, setup, args.boots)
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    args.out.write_bytes(gzip.compress(content, mtime=0) if args.out.suffix == ".gz" else content)
    return 0


def record(
    kernel: image.Kernel, folder: Path, programs: Ops, setup: boot.Setup, boots: int
) -> list[dict[str, Any]]:
    """Run the programs on several boots, each in another order. The recording is those that always answer the same.

    The order matters to what the kernel counts through a boot, so that what depends on it shows.
    """
    found: list[boot.Answers] = []
    for number in range(boots):
        order = list(programs)
        random.Random(number).shuffle(order)
        found.append(boot.boot(kernel, folder, order if number else programs, setup))
        for fact in found[-1].facts:
            print(f"boot {number}: {fact}", file=sys.stderr)
    lines = []
    for name, ops in programs:
        answers = [answer.results.get(name) for answer in found]
        deaths = [answer.deaths[name] for answer in found if name in answer.deaths]
        first = answers[0]
        if deaths or first is None or len(first) != len(ops):
            print(f"left out {name}: it died", file=sys.stderr)
        elif any(other != first for other in answers):
            at, others = _first_difference(answers)
            print(f"left out {name}: boots differ at {ops[at]!r}: {' / '.join(others)}", file=sys.stderr)
        else:
            line: dict[str, Any] = {"name": name, "kernel": kernel.version}
            if setup.plain():
                line["machine"] = setup.plain()
            lines.append(line | {"ops": ops, "results": first})
    print(f"{len(lines)} of {len(programs)} programs recorded", file=sys.stderr)
    return lines


def _first_difference(answers: list[list[str] | None]) -> tuple[int, list[str]]:
    lists = [answer or [] for answer in answers]
    for at, row in enumerate(zip(*lists, strict=False)):
        if len(set(row)) > 1:
            return at, [text[:60] for text in row]
    return 0, ["one boot has no answer"]


def _again(kernel: image.Kernel, folder: Path, recording: list[dict[str, Any]]) -> int:
    """Compare a recording with what this kernel answers."""
    differ = 0
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in recording:
        groups.setdefault(json.dumps(entry.get("machine", {}), sort_keys=True), []).append(entry)
    for entries in groups.values():
        ops = [(entry["name"], entry["ops"]) for entry in entries]
        answers = boot.boot(kernel, folder, ops, _setup_of(entries[0]))
        for entry in entries:
            got = answers.results[entry["name"]]
            for op, expected, now in zip(entry["ops"], entry["results"], got, strict=False):
                if expected != now:
                    print(
                        f"program {entry['name']}: {op}\n  recorded: {expected[:160]}\n  now:      {now[:160]}"
                    )
                    differ += 1
                    break
    print(f"{len(recording) - differ} of {len(recording)} programs gave the recorded answers")
    return 1 if differ else 0


def _setup_of(entry: dict[str, Any]) -> boot.Setup:
    return boot.Setup(**entry.get("machine", {}))


def _read(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    text = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    return [json.loads(line) for line in text.splitlines() if line.strip()]


if __name__ == "__main__":
    sys.exit(main())
