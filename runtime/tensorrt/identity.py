"""What this device is: an engine runs on the GPU, TensorRT and JetPack that it was built with, and no other.

Nothing is loaded for it but what the device has: files of the kernel, the `tensorrt` package or `trtexec`,
`nvidia-smi`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtime.errors import BackendError, EngineError
from runtime.lazy import require

__all__ = [
    "TARGETS",
    "EngineIdentity",
    "EngineTarget",
    "Probe",
    "find_identity",
    "find_trtexec",
    "jetpack_of",
    "target_named",
]

# GPU of a Tegra chip, by the last word of /proc/device-tree/compatible: (name, SM).
_CHIPS = {"tegra194": ("xavier", 72), "tegra234": ("orin", 87), "tegra264": ("thor", 110)}

# (release, revision from, JetPack), newest first: the page "Jetson Linux Archive", and for 38 and later the
# table of dusty-nv/jetson-containers (l4t_version.py).
_JETPACKS = (
    ((39, 2, 1), "7.2.1"),
    ((39, 0, 0), "7.2"),
    ((38, 4, 0), "7.1"),
    ((38, 0, 0), "7.0"),
    ((36, 5, 0), "6.2.2"),
    ((36, 4, 4), "6.2.1"),
    ((36, 4, 3), "6.2"),
    ((36, 4, 0), "6.1"),
    ((36, 0, 0), "6.0"),
    ((35, 0, 0), "5.1"),
)
_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack and the Debian packages put it
_SECONDS = 20.0


@dataclass(frozen=True)
class EngineIdentity:
    """What an engine is bound to.

    Attributes:
        gpu: short name in lower case, e.g. `orin`.
        sm: compute capability as one number, e.g. 87.
        tensorrt: version as x.y.z.
        jetpack: version, None where it is no Jetson.
    """

    gpu: str
    sm: int
    tensorrt: str
    jetpack: str | None

    @property
    def tag(self) -> str:
        """Name of the folder of its engines, e.g. `orin-sm87-trt10.3.0-jp6.2`."""
        words = [_slug(self.gpu), f"sm{self.sm}", f"trt{self.tensorrt}"]
        return "-".join(words if self.jetpack is None else [*words, f"jp{self.jetpack}"])

    def __str__(self) -> str:
        jetpack = "" if self.jetpack is None else f", JetPack {self.jetpack}"
        return f"{self.gpu} (SM{self.sm}), TensorRT {self.tensorrt}{jetpack}"


@dataclass(frozen=True)
class EngineTarget:
    """A device that engines can be planned for elsewhere.

    Attributes:
        name: as in `--target`.
        title: in words.
        identity: what such a device says of itself.
        workspace: bytes of scratch memory that its builder may use unless told otherwise.
        precisions: element types that its tensor cores multiply.
    """

    name: str
    title: str
    identity: EngineIdentity
    workspace: int = 2 << 30
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8")


_TARGETS = (
    EngineTarget(
        "jetpack6",
        "Jetson Orin with JetPack 6.2 (TensorRT 10.3)",
        EngineIdentity("orin", 87, "10.3.0", "6.2"),
    ),
    EngineTarget(
        "jetpack7",
        "Jetson Thor with JetPack 7.1 (TensorRT 10.13)",
        EngineIdentity("thor", 110, "10.13.3", "7.1"),
        workspace=4 << 30,
        precisions=("fp32", "fp16", "bf16", "int8", "fp8", "fp4"),
    ),
    EngineTarget(
        "jetpack7-orin",
        "Jetson Orin with JetPack 7.2 (TensorRT 10.16)",
        EngineIdentity("orin", 87, "10.16.0", "7.2"),
    ),
)
TARGETS: Mapping[str, EngineTarget] = MappingProxyType({target.name: target for target in _TARGETS})


def target_named(name: str) -> EngineTarget:
    """A target by name.

    Raises:
        EngineError: there is none of that name.
    """
    if name not in TARGETS:
        raise EngineError(
            f'target is "{name}", expected one of {", ".join(TARGETS)}, or none for this device'
        )
    return TARGETS[name]


def _run_tool(command: Sequence[str]) -> str | None:
    """Output of a tool, None where it is not there or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr


def _tensorrt_module() -> Any | None:
    try:
        return require("tensorrt", "tensorrt", "tensorrt")
    except BackendError:
        return None


@dataclass(frozen=True)
class Probe:
    """How a device is asked; tests give a folder of files, and tools that answer from a table.

    Attributes:
        root: of the file system.
        run: a command to its output, None where the tool is missing.
        module: the `tensorrt` package, None where it cannot be imported.
    """

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str | None] = _run_tool
    module: Callable[[], Any | None] = _tensorrt_module

    def text(self, path: str) -> str | None:
        """Text of a file, without the zero bytes of a device tree; None where it cannot be read."""
        try:
            return (self.root / path).read_bytes().decode(errors="replace").replace("\0", "\n")
        except OSError:
            return None


def find_identity(probe: Probe | None = None) -> EngineIdentity:
    """Ask this device what it is.

    Raises:
        EngineError: no NVIDIA GPU, or no TensorRT.
    """
    probe = probe or Probe()
    chip = _tegra(probe) or _discrete(probe)
    if chip is None:
        raise EngineError(
            "this machine has no NVIDIA GPU that the driver shows, and engines are built where they run: run "
            "this on the device, or add --plan-only --target jetpack6 to see the plan"
        )
    version = _tensorrt(probe)
    if version is None:
        raise EngineError(
            f"this {chip[0]} (SM{chip[1]}) has no TensorRT, neither the Python package nor trtexec: install "
            "it (Jetson: sudo apt install nvidia-jetpack; else: pip install 'fopru-edge[tensorrt]')"
        )
    return EngineIdentity(*chip, version, jetpack_of(probe.text("etc/nv_tegra_release") or ""))


def find_trtexec(probe: Probe | None = None) -> str | None:
    """Path of `trtexec`, None where there is none."""
    probe = probe or Probe()
    if (probe.root / _TRTEXEC.lstrip("/")).is_file():
        return _TRTEXEC
    return "trtexec" if probe.run(["trtexec", "--help"]) is not None else None


def jetpack_of(release: str) -> str | None:
    """JetPack version from the text of `/etc/nv_tegra_release`; `l4t35.4` and the like where unknown, None
    where it is no Jetson's.

    Such a file begins `# R36 (release), REVISION: 4.3, GCID: …`.
    """
    found = re.search(r"R(\d+) \(release\), REVISION: (\d+)(?:\.(\d+))?", release)
    if found is None:
        return None
    version = (int(found[1]), int(found[2]), int(found[3] or 0))
    for first, jetpack in _JETPACKS:
        if first[0] == version[0] and version >= first:
            return jetpack
    return f"l4t{version[0]}.{version[1]}"


def _tegra(probe: Probe) -> tuple[str, int] | None:
    words = re.findall(r"nvidia,(tegra\d+)", probe.text("proc/device-tree/compatible") or "")
    known = [_CHIPS[word] for word in words if word in _CHIPS]
    return known[0] if known else None


def _discrete(probe: Probe) -> tuple[str, int] | None:
    """The first GPU of `nvidia-smi`: a line `NVIDIA GeForce RTX 3090, 8.6`."""
    listed = probe.run(["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]) or ""
    found = re.search(r"^(.+), (\d+)\.(\d+)\s*$", listed, re.MULTILINE)
    if found is None:
        return None
    name = re.sub(r"^(NVIDIA )?(GeForce )?", "", found[1].strip())
    return _slug(name), 10 * int(found[2]) + int(found[3])


def _tensorrt(probe: Probe) -> str | None:
    """x.y.z of the package, else of the Debian package that `trtexec` comes from, else of `trtexec`."""
    module = probe.module()
    if module is not None:
        return _three(str(module.__version__))
    for package in ("libnvinfer-bin", "libnvinfer10", "tensorrt"):
        listed = probe.run(["dpkg-query", "-W", "-f=${Version}", package]) or ""
        if re.match(r"\d+\.\d+\.\d+", listed):
            return _three(listed)
    # Its first line: &&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help
    for tool in (_TRTEXEC, "trtexec"):
        found = re.search(r"TensorRT v(\d+)", probe.run([tool, "--help"]) or "")
        if found is not None:
            number = int(found[1])
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None


def _three(version: str) -> str:
    return ".".join(version.split("-")[0].split(".")[:3])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
