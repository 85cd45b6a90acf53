"""Whether a build can fit into this machine's memory at all, said before anything is loaded.

Two sums, both lower bounds. Loading: weights in a dtype that neither lies in memory as it is nor can wait
until it is used (`export.stored_weights`) become float32, 4 bytes each. Comparing with PyTorch: ONNX Runtime
keeps a packed copy of every matrix of the language model, in the bits of its precision. What stays in the
pages of files is not counted, as the system can drop and read it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib.precision import Precisions
from export.checkpoint import matrix_dtypes, stored_tensors
from export.errors import CheckpointError

__all__ = ["MemoryNeed", "available_bytes", "check_memory", "memory_need"]

_FULL = 4  # bytes of a float32
_AS_STORED = ({"F32"}, {"F16"}, {"BF16"})
_NOT_DECODER = ("vision", "visual", "embed", "project", "connector", "merger")


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a build cannot do without: while it loads, and while it runs the finished bundle.

    `matrices` are the numbers in the language model's matrices, `bits` those of each in the bundle.
    """

    loading: int
    matrices: int
    bits: int

    @property
    def running(self) -> int:
        """Bytes of the language model's matrices as the bundle has them."""
        return self.matrices * self.bits // 8


def check_memory(files: Sequence[Path], precisions: Precisions) -> None:
    """Refuse a build that cannot succeed on this machine; where the system does not tell, nothing is refused.

    Args:
        files: the checkpoint's safetensors files.
        precisions: of the bundle.

    Raises:
        CheckpointError: memory is too small for the model.
    """
    need, available = memory_need(files, precisions), available_bytes()
    if available is None or max(need.loading, need.running) <= available:
        return
    there = f"{available / 1e9:.1f} GB are available"
    if need.loading > available:
        raise CheckpointError(
            f"loading the checkpoint takes {need.loading / 1e9:.1f} GB of memory, as its matrices are of "
            f"several dtypes and become float32, and {there}: save all of them as float16, bfloat16 or "
            "float32, or use another machine"
        )
    smaller = need.matrices // 2
    way = f"give --precision decoder=int4 ({smaller / 1e9:.1f} GB), or use" if smaller <= available else "use"
    raise CheckpointError(
        f"the language model takes {need.running / 1e9:.1f} GB of memory ({need.matrices / 1e9:.2f} billion "
        f"weights of {need.bits} bits) when the bundle is compared with PyTorch, and {there}: {way} another "
        "machine"
    )


def memory_need(files: Sequence[Path], precisions: Precisions) -> MemoryNeed:
    """The two sums of a checkpoint's safetensors files."""
    entries = {name: entry for file in files for name, entry in stored_tensors(file).items()}
    matrices = {name: entry for name, entry in entries.items() if len(entry["shape"]) > 1}
    as_stored = matrix_dtypes(files) in _AS_STORED
    widened = [entry for entry in entries.values() if entry["dtype"] != "F32" and not as_stored]
    decoder = [entry for name, entry in matrices.items() if not any(word in name for word in _NOT_DECODER)]
    return MemoryNeed(_FULL * _numbers(widened), _numbers(decoder), precisions.decoder.bits)


def available_bytes() -> int | None:
    """Memory that can be had, by the system's own estimate, and free swap: slow, but a build ends there too.
    None where it does not tell."""
    listing = Path("/proc/meminfo")
    if not listing.is_file():
        return None
    found = dict(line.split(":", 1) for line in listing.read_text().splitlines() if ":" in line)
    if "MemAvailable" not in found:
        return None
    return sum(int(found.get(key, "0").split()[0]) for key in ("MemAvailable", "SwapFree")) * 1024


def _numbers(entries: Iterable[dict[str, Any]]) -> int:
    return sum(math.prod(entry["shape"]) for entry in entries)
