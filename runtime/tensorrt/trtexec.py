"""The `trtexec` command of every engine of a plan, for devices without TensorRT's Python package.

Syntax of TensorRT 10.3 to 11.1 (`samples/common/sampleOptions.cpp`): `--profile=N` opens a profile, its three
shapes follow at once; dims are `name:AxBxC`, and for a shape tensor the same place holds its values. A name
may hold one `*` (`matchStringWithOneWildcard`), which stands here for the layer and part of a cache tensor.
`--stronglyTyped` does nothing from 11 on.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.tensorrt.plan import EnginePlan, GraphPlan, InputProfile

__all__ = ["TrtexecPaths", "shell_text", "trtexec_command"]

_PAST = "past_key_values."


@dataclass(frozen=True)
class TrtexecPaths:
    """Where things are: the program, the bundle, the folder of the engines, and the timing cache."""

    program: str
    bundle: Path
    engines: Path
    timing_cache: Path


def trtexec_command(plan: EnginePlan, graph: GraphPlan, paths: TrtexecPaths) -> list[str]:
    """Words of the command that builds one engine."""
    words = [
        paths.program,
        f"--onnx={paths.bundle / graph.file}",
        f"--saveEngine={paths.engines / f'{graph.graph}.engine'}",
        "--stronglyTyped",
        "--noTF32",
        "--skipInference",
    ]
    for number, profile in enumerate(graph.profiles):
        if len(graph.profiles) > 1:
            words.append(f"--profile={number}")
        words += [
            f"--{flag}Shapes={_spec(profile, point)}" for point, flag in enumerate(("min", "opt", "max"))
        ]
    return [
        *words,
        f"--memPoolSize=workspace:{plan.workspace >> 20}M",
        f"--builderOptimizationLevel={plan.level}",
        f"--timingCacheFile={paths.timing_cache}",
    ]


def shell_text(words: list[str]) -> str:
    """A command for a shell, one option per line."""
    return " \\\n  ".join(shlex.quote(word) for word in words)


def _spec(profile: Mapping[str, InputProfile], point: int) -> str:
    """`name:1x2,other:3` at a point; tensors of the cache, all of one shape, as one."""
    found: dict[str, str] = {}
    for name, each in profile.items():
        short = f"{_PAST}*" if name.startswith(_PAST) else name
        found[short] = "x".join(map(str, each.points[point]))
    return ",".join(f"{name}:{dims}" for name, dims in found.items())
