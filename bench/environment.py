"""What a figure was measured on: machine, versions, commit and command, written into every result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

__all__ = [
    "ROOT",
    "Environment",
    "cpu_name",
    "describe_environment",
    "package_versions",
    "running_command",
    "usable_cores",
]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "onnxruntime", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "tensorrt-rtx")


@dataclass(frozen=True)
class Environment:
    """`threads` is None where the measurement does not set them; `versions` has what is installed; `commit`
    ends in `-dirty` when the work tree had changes.
    """

    cpu: str
    cores: int
    threads: int | None
    memory_gb: float | None
    system: str
    python: str
    versions: dict[str, str]
    commit: str | None
    command: str
    date: str


def describe_environment(threads: int | None) -> Environment:
    """The machine and the process at hand; `threads` is what the measurement sets, if it does."""
    return Environment(
        cpu=cpu_name(),
        cores=usable_cores(),
        threads=threads,
        memory_gb=_memory_gb(),
        system=_system(),
        python=platform.python_version(),
        versions=package_versions(),
        commit=_commit(),
        command=running_command(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def usable_cores() -> int:
    """Cores this process may run on: fewer than the machine has, inside a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Model name of the CPU, or the architecture where the system does not tell."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def running_command() -> str:
    """The command line that repeats this run, with paths relative to the repository."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        program = [Path(sys.argv[0]).name]
    else:
        program = ["python", "-m", spec.name.removesuffix(".__main__")]
    return shlex.join([*program, *(argument.replace(f"{ROOT}/", "") for argument in sys.argv[1:])])


def _system() -> str:
    """Distribution and architecture: `Debian GNU/Linux 12 (bookworm), x86_64`."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # not Linux, or a distribution that does not say
        name = f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.machine()}"


def _memory_gb() -> float | None:
    listing = Path("/proc/meminfo")
    if not listing.is_file():
        return None
    kilobytes = int(listing.read_text().split("MemTotal:")[1].split()[0])
    return round(kilobytes / 1e6, 1)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, those of them that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """None outside a git work tree, or without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
