"""What both stages share: options, learning rate, precision, and a state that survives an interruption."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Options", "State", "autocast", "learning_rate", "restore", "store"]


@dataclass(frozen=True)
class Options:
    """Options of one training run; every one has its flag in ``demo.train``."""

    work: Path  # where the resumable state lies
    device: str = "cpu"
    precision: str = "fp32"  # or bf16: autocast, master weights stay float32
    seed: int = 7
    batch_size: int = 32
    pretrain_steps: int = 3600
    tune_steps: int = 2200
    joint_steps: int = 1500
    store_every: int = 200  # steps

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {self.precision!r}")
        if min(self.batch_size, self.pretrain_steps, self.tune_steps, self.joint_steps, self.store_every) < 1:
            raise ValueError("batch size, steps and store interval must be >= 1")

    def steps_of(self, stage: str) -> int:
        """Steps of a stage by the name of its state."""
        return {"pretrain": self.pretrain_steps, "tune": self.tune_steps, "joint": self.joint_steps}[stage]


@dataclass
class State:
    """Everything a stage needs to go on. Batches are functions of (seed, step), so no generator is kept."""

    name: str
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    step: int = 0


def autocast(options: Options) -> AbstractContextManager[Any]:
    """Mixed precision of the forward pass."""
    return torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=options.precision == "bf16")


def learning_rate(step: int, steps: int, peak: float) -> float:
    """One cycle: linear over the first 5 %, then a cosine to 2 % of the peak."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def store(state: State, options: Options) -> None:
    """Writes beside and renames: an interruption leaves the previous state."""
    options.work.mkdir(parents=True, exist_ok=True)
    target = options.work / f"{state.name}.pt"
    beside = target.with_suffix(".partial")
    torch.save(
        {
            "step": state.step,
            "made_with": _fingerprint(state.name, options),
            "modules": {name: module.state_dict() for name, module in state.modules.items()},
            "optimizer": state.optimizer.state_dict(),
        },
        beside,
    )
    beside.replace(target)


def restore(state: State, options: Options) -> bool:
    """Loads the last stored state, if there is one."""
    target = options.work / f"{state.name}.pt"
    if not target.exists():
        return False
    stored = torch.load(target, map_location=options.device, weights_only=True)
    if stored["made_with"] != _fingerprint(state.name, options):
        raise ValueError(
            f"{target} was made with {stored['made_with']}, "
            f"this run has {_fingerprint(state.name, options)}: "
            "use the same options to continue, or --restart to begin anew"
        )
    for name, module in state.modules.items():
        module.load_state_dict(stored["modules"][name])
    state.optimizer.load_state_dict(stored["optimizer"])
    state.step = int(stored["step"])
    return True


def _fingerprint(name: str, options: Options) -> dict[str, int]:
    """What must not change between two runs of one stage: schedule and batches depend on it."""
    return {"seed": options.seed, "batch size": options.batch_size, "steps": options.steps_of(name)}
