"""The toy checkpoint of every family, by model type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.toy_internvl import write_toy_internvl
from tests.toy_llava import write_toy_llava
from tests.toy_llava_next import write_toy_llava_next
from tests.toy_qwen2_5_vl import write_toy_qwen2_5_vl
from tests.toy_smolvlm import write_toy_idefics3, write_toy_smolvlm

__all__ = ["TOYS"]

TOYS: dict[str, Callable[[Path], Path]] = {
    "llava": write_toy_llava,
    "llava_next": write_toy_llava_next,
    "smolvlm": write_toy_smolvlm,
    "idefics3": write_toy_idefics3,
    "qwen2_5_vl": write_toy_qwen2_5_vl,
    "internvl": write_toy_internvl,
}
