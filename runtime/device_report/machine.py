"""What this machine is, from files of the kernel and the tools that JetPack or the driver bring."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from typing import Any

from runtime.backends.cudart import CudaCopies, load_cudart
from runtime.device_report.record import Machine, Memory
from runtime.errors import BackendError, EngineError
from runtime.tensorrt.identity import Probe, find_identity, jetpack_of
from runtime.version import __version__

__all__ = ["PACKAGES", "MemoryReader", "find_machine", "meminfo"]

PACKAGES = (
    *("numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt"),
    *("cuda-python", "cuda-bindings"),
)
"""Packages whose versions decide a result."""

_SMI = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader"]


def find_machine(probe: Probe | None = None) -> Machine:
    """Ask this machine what it is; what it does not say is None."""
    probe = probe or Probe()
    release = probe.text("etc/nv_tegra_release") or ""
    smi = _smi(probe)
    gpu, capability = smi.get("name"), smi.get("compute_cap")
    tensorrt = None
    try:
        identity = find_identity(probe)
    except EngineError:  # no GPU, or no TensorRT: both show as None
        pass
    else:
        gpu, tensorrt = gpu or identity.gpu, identity.tensorrt
        capability = capability or f"{identity.sm // 10}.{identity.sm % 10}"
    sizes = meminfo(probe)
    memory = {
        name: sizes[key]
        for name, key in (
            ("total", "MemTotal"),
            ("available", "MemAvailable"),
            ("swap", "SwapTotal"),
            ("cma", "CmaTotal"),
            ("cma_free", "CmaFree"),
        )
        if key in sizes
    }
    mebibytes = re.match(r"(\d+) MiB", smi.get("memory.total", ""))
    if mebibytes is not None:
        memory["gpu"] = int(mebibytes[1]) << 20
    return Machine(
        model=_model(probe),
        system=_system(probe),
        cores=_cores(),
        gpu=gpu,
        compute_capability=capability,
        driver=smi.get("driver_version"),
        jetpack=jetpack_of(release),
        l4t=_l4t(release),
        cuda=_cuda(probe),
        tensorrt=tensorrt,
        power_mode=_power_mode(probe),
        memory=memory,
        versions=_versions(),
        temperatures=_temperatures(probe),
    )


def meminfo(probe: Probe) -> dict[str, int]:
    """`/proc/meminfo` in bytes; empty where there is none."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", probe.text("proc/meminfo") or "", re.MULTILINE)
    return {name: int(number) * 1024 for name, number in lines}


class MemoryReader:
    """Reads memory counters again and again; the GPU's where its driver is there."""

    def __init__(self, probe: Probe | None = None, pool: Any = None) -> None:
        """Find out what can be read; `pool` counts what the runtime has `allocated` on the device."""
        self._probe = probe or Probe()
        self._device = _device_memory()
        self._pool = pool

    def read(self) -> Memory:
        """The counters now."""
        text = self._probe.text("proc/self/status") or ""
        own = {name: int(n) * 1024 for name, n in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text)}
        return Memory(
            rss=own.get("VmRSS"),
            peak_rss=own.get("VmHWM"),
            available=meminfo(self._probe).get("MemAvailable"),
            device=self._in_use(),
            buffers=None if self._pool is None else int(self._pool.allocated),
        )

    def _in_use(self) -> int | None:
        if self._device is None:
            return None
        free, total = self._device.memory()
        return total - free


def _device_memory() -> CudaCopies | None:
    try:
        copies = CudaCopies(load_cudart())
        copies.memory()
    except BackendError:
        return None
    return copies


def _smi(probe: Probe) -> dict[str, str]:
    """The first GPU that `nvidia-smi` lists; a Jetson's knows few of these."""
    fields = _SMI[1].split("=")[1].split(",")
    for line in (probe.run(_SMI) or "").splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(fields):
            return {name: value for name, value in zip(fields, values, strict=True) if "N/A" not in value}
    return {}


def _model(probe: Probe) -> str:
    board = (probe.text("proc/device-tree/model") or "").strip()
    if board:
        return board
    found = re.search(r"^model name\s*:\s*(.+)$", probe.text("proc/cpuinfo") or "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _system(probe: Probe) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', probe.text("etc/os-release") or "", re.MULTILINE)
    name = found[1] if found else f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.machine()}, Python {platform.python_version()}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _l4t(release: str) -> str | None:
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    return f"{found[1]}.{found[2]}" if found else None


def _cuda(probe: Probe) -> str | None:
    """The toolkit's version, else the newest that the driver can run."""
    try:
        return str(json.loads(probe.text("usr/local/cuda/version.json") or "")["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        found = re.search(r"CUDA Version: ([\d.]+)", probe.run(["nvidia-smi"]) or "")
        return f"{found[1]} (driver)" if found else None


def _power_mode(probe: Probe) -> str | None:
    found = re.search(r"NV Power Mode: (.+)", probe.run(["nvpmodel", "-q"]) or "")
    return found[1].strip() if found else None


def _versions() -> dict[str, str]:
    found = {"fopru-edge": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _temperatures(probe: Probe) -> dict[str, float]:
    found = {}
    for zone in sorted((probe.root / "sys/class/thermal").glob("thermal_zone*")):
        place = zone.relative_to(probe.root).as_posix()
        name, value = probe.text(f"{place}/type"), probe.text(f"{place}/temp")
        if name and value and value.strip().lstrip("-").isdigit():
            found[name.strip()] = int(value) / 1000
    return found
