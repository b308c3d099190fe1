"""Boots the recording machine in QEMU under software emulation, and reads the answers."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import oracle_image as image

NODE_MIB = 256
NR_NODES = 4
DISTANCES = ((10, 20, 30, 40), (20, 10, 20, 30), (30, 20, 10, 20), (40, 30, 20, 10))
#: Modules for the disk and its file system; those that a kernel has built in are left out.
_MODULES = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"]
_DISK_BYTES = 64 << 20
_SWAP_PAGES = 8192

#: Settings of every machine: nothing moves or merges pages by itself.
_QUIET = [
    "write /sys/kernel/mm/transparent_hugepage/enabled never",
    "write /proc/sys/kernel/numa_balancing 0",
]


@dataclass(frozen=True)
class Setup:
    """What is different from one machine to the other. The defaults are the machine of docs/oracle.md."""

    read_ahead_kb: int = 0
    fault_around_bytes: int = 4096
    swap: str = "none"  # "ram": a device that answers at once (brd); "disk": one that takes its time (virtio)
    page_cluster: int = 0
    slow_nodes: int = 0  # so many of the last nodes are NVDIMMs, online as kernel memory in the slower tier
    demotion_enabled: bool = False

    def plain(self) -> dict[str, int | bool | str]:
        """The settings that are not the defaults."""
        usual = Setup()
        return {name: value for name, value in vars(self).items() if value != getattr(usual, name)}


@dataclass
class Answers:
    """What came out of one boot."""

    results: dict[str, list[str]] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)
    deaths: dict[str, str] = field(default_factory=dict)


def boot(
    kernel: image.Kernel,
    folder: Path,
    programs: list[tuple[str, list[str]]],
    setup: Setup,
    extra: list[str] | None = None,
    timeout_s: int = 3600,
) -> Answers:
    """Run programs (name, ops) in this order on one boot."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise SystemExit("QEMU is missing: apt-get install qemu-system-x86")
    wanted = _MODULES + (_SLOW_MODULES if setup.slow_nodes else []) + (["brd"] if setup.swap == "ram" else [])
    modules = kernel.load_order(wanted)
    lines = [f"boot {line}" for line in [*_boot_lines(kernel, modules, setup), *(extra or [])]]
    for name, ops in programs:
        lines += [f"program {name}", *ops, "end"]
    files = {"init": image.build_guest(folder).read_bytes(), "programs": ("\n".join(lines) + "\n").encode()}
    files |= {f"modules/{name}.ko": kernel.module(name) for name in modules}
    image.write_initramfs(folder / "initramfs", files)
    image.make_disk(folder / "disk", _DISK_BYTES, "ext4")
    if setup.swap == "disk":
        image.make_disk(folder / "swap", _SWAP_PAGES << 12, "swap")
    answers = folder / "answers"
    command = [qemu, *_qemu_arguments(kernel, folder, setup), "-serial", f"file:{answers}"]
    subprocess.run(command, check=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    return _parse(answers.read_text(errors="replace"), folder / "console")


#: An NVDIMM becomes memory of the kernel over these.
_SLOW_MODULES = ["nfit", "libnvdimm", "dax_pmem", "device_dax", "kmem"]


def _slow_lines(number: int) -> list[str]:
    """An NVDIMM becomes a device-dax, and that memory of the kernel. Tests of the kernel do it so, with ndctl."""
    nd, dax = f"/sys/bus/nd/devices/dax{number}.0", "/sys/bus/dax/drivers"
    return [
        f"write {nd}/mode ram",
        f"write {nd}/align 2097152",
        f"write {nd}/uuid 8a1cbb5b-2c1e-4f4b-9c3e-6d1f0a4b7e2{number}",
        f"write {nd}/namespace namespace{number}.0",
        f"write /sys/bus/nd/drivers/dax_pmem/bind dax{number}.0",
        f"write {dax}/device_dax/unbind dax{number}.0",
        f"write {dax}/kmem/new_id dax{number}.0",
    ]


def _boot_lines(kernel: image.Kernel, modules: list[str], setup: Setup) -> list[str]:
    sized = {"brd": f" rd_nr=1 rd_size={_SWAP_PAGES * 4}"}
    lines = [f"module {name}{sized.get(name, '')}" for name in modules]
    lines += _QUIET
    if not kernel.version.startswith("6.1."):
        lines.append("write /sys/kernel/mm/lru_gen/enabled 0")
    lines += [
        f"write /sys/block/vda/queue/read_ahead_kb {setup.read_ahead_kb}",
        f"write /sys/kernel/debug/fault_around_bytes {setup.fault_around_bytes}",
        f"write /proc/sys/vm/page-cluster {setup.page_cluster}",
        "files /dev/vda",
    ]
    if setup.read_ahead_kb:
        lines.append("ahead")
    if setup.swap == "disk":
        lines.append("swapon /dev/vdb")
    if setup.swap == "ram":
        lines.append(f"ramswap /dev/ram0 {_SWAP_PAGES}")
    if setup.slow_nodes:
        lines.append("write /sys/devices/system/memory/auto_online_blocks online_movable")
    for number in range(setup.slow_nodes):
        lines += _slow_lines(number)
    lines.append(f"write /sys/kernel/mm/numa/demotion_enabled {int(setup.demotion_enabled)}")
    return lines


def _qemu_arguments(kernel: image.Kernel, folder: Path, setup: Setup) -> list[str]:
    arguments = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-accel",
        "tcg,thread=multi",
    ]
    arguments += ["-cpu", "max", "-smp", "2,sockets=2,cores=1,threads=1"]
    ram_nodes = NR_NODES - setup.slow_nodes
    arguments += ["-m", f"{ram_nodes * NODE_MIB}M,slots=2,maxmem=4G"]
    arguments += ["-machine", "pc,nvdimm=on" if setup.slow_nodes else "pc"]
    for nid in range(NR_NODES):
        where = f"node,nodeid={nid}" + (f",cpus={nid}" if nid < 2 else "")
        if nid < ram_nodes:
            arguments += ["-object", f"memory-backend-ram,id=m{nid},size={NODE_MIB}M"]
            where += f",memdev=m{nid}"
        arguments += ["-numa", where]
    for here, row in enumerate(DISTANCES):
        for there, distance in enumerate(row):
            if here != there:
                arguments += ["-numa", f"dist,src={here},dst={there},val={distance}"]
    for number in range(setup.slow_nodes):
        # One memory block more than the node: the namespace's own notes take the first.
        arguments += ["-object", f"memory-backend-ram,id=slow{number},size={NODE_MIB + 128}M"]
        arguments += ["-device", f"nvdimm,id=nvdimm{number},memdev=slow{number},node={ram_nodes + number}"]
    disks = ["disk", "swap"] if setup.swap == "disk" else ["disk"]
    for disk in disks:
        arguments += ["-drive", f"file={folder / disk},format=raw,if=virtio,cache=unsafe"]
    arguments += ["-kernel", str(kernel.image), "-initrd", str(folder / "initramfs")]
    arguments += ["-append", "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr rdinit=/init"]
    return [*arguments, "-serial", f"file:{folder / 'console'}"]


def _parse(text: str, console: Path) -> Answers:
    answers = Answers()
    name, results = "", []
    lines = text.replace("\r", "").splitlines()
    ended = bool(lines) and lines[-1] == "bye"
    for line in lines[:-1] if ended else lines:
        word, _, rest = line.partition(" ")
        if word == "fact":
            answers.facts.append(rest)
        elif word == "program":
            name, results = rest, []
        elif word == "died":
            answers.deaths[name] = rest
        elif word == "end":
            answers.results[name] = results
        else:
            results.append(line)
    if not ended:
        tail = "\n".join(console.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(
            f"the machine stopped before the last program, in or after {name!r}; its console:\n{tail}"
        )
    return answers
