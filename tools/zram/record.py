"""Records what the zram of a real Linux makes of page sets: `mm_stat` for each set and algorithm.

    python3 tools/zram/record.py --kernel linux-image-6.1.0-50-amd64_*.deb --out tests/data/linux_zram.json

docs/validation.md says what for; docs/oracle.md, how to get a kernel. Needs QEMU and gcc, and privmem installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import page_sets

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracle"))
import oracle_image as image

GUEST_SOURCE = Path(__file__).with_name("guest.c")
ALGORITHMS = ("lz4", "lzo-rle", "zstd")
_MODULES = ["zram", "lz4", "lzo_rle", "zstd"]
#: Columns of mm_stat that are kept (Documentation/admin-guide/blockdev/zram.rst); the others are limits and peaks.
COLUMNS = {
    "orig_data_size": 0,
    "compr_data_size": 1,
    "mem_used_total": 2,
    "same_pages": 5,
    "huge_pages": 7,
}


def main() -> int:
    """Record all sets; 1 when an algorithm is missing."""
    parser = argparse.ArgumentParser(description="Record what zram makes of page sets.")
    parser.add_argument("--kernel", type=Path, required=True, metavar="DEB", help="a linux-image-*.deb")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the recording, JSON")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep unpacked kernels and images here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kernel = image.unpack_kernel(args.kernel, folder)
        sets = page_sets.page_sets()
        answers = _boot(kernel, folder, sets)
    found: dict[str, Any] = {"kernel": kernel.version, "sets": {}}
    for name, pages in sets.items():
        found["sets"][name] = {"pages": len(pages), "sha256": page_sets.digest(pages)} | {
            algorithm: _row(answers[algorithm, name])
            for algorithm in ALGORITHMS
            if answers[algorithm, name] != ["missing"]
        }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(answer == ["missing"] for answer in answers.values()))


def _row(words: list[str]) -> dict[str, int]:
    return {name: int(words[at]) for name, at in COLUMNS.items()}


def _boot(kernel: image.Kernel, folder: Path, sets: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """(algorithm, set) -> words of mm_stat."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise SystemExit("QEMU is missing: apt-get install qemu-system-x86")
    guest = folder / "zram-guest"
    subprocess.run(["gcc", "-O1", "-static", "-o", str(guest), str(GUEST_SOURCE)], check=True)
    modules = kernel.load_order(_MODULES)
    files = {"init": guest.read_bytes(), "order": "\n".join(modules).encode()}
    files |= {"algorithms": "\n".join(ALGORITHMS).encode(), "sets": "\n".join(sets).encode()}
    files |= {f"modules/{name}.ko": kernel.module(name) for name in modules}
    files |= {f"pages/{name}": pages.tobytes() for name, pages in sets.items()}
    image.write_initramfs(folder / "zram-initramfs", files)
    answers, console = folder / "zram-answers", folder / "zram-console"
    command = [qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1G", "-machine", "pc"]
    command += ["-kernel", str(kernel.image), "-initrd", str(folder / "zram-initramfs")]
    command += ["-append", "console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init"]
    command += ["-serial", f"file:{console}", "-serial", f"file:{answers}"]
    subprocess.run(command, check=True, timeout=3600, stdin=subprocess.DEVNULL)
    lines = answers.read_text(errors="replace").replace("\r", "").splitlines()
    if not lines or lines[-1] != "bye":
        raise SystemExit(
            f"the machine stopped early: {lines[-3:]}; its console:\n{console.read_text()[-2000:]}"
        )
    words = [line.split() for line in lines[:-1]]
    return {(row[0], row[1]): row[2:] for row in words}


if __name__ == "__main__":
    sys.exit(main())
