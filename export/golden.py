"""Golden tensors: one request and what PyTorch makes of it, so that a device without torch can compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.errors import OptionError
from runtime.golden import GOLDEN_RECORD, GOLDEN_TENSORS, Golden

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DEFAULT_PROMPT", "NEW_TOKENS", "SAMPLE_IMAGE", "open_images", "reference_name", "write_golden"]

SAMPLE_IMAGE = Path(__file__).resolve().parent / "sample.png"
DEFAULT_PROMPT = "How many digits are there?"
NEW_TOKENS = 32


def open_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Open pictures the way transformers does (EXIF rotation applied, RGB); none given: the packaged sample.

    Raises:
        OptionError: a file is not a picture.
    """
    from transformers.image_utils import load_image

    images = []
    for path in paths or (SAMPLE_IMAGE,):
        try:
            images.append(load_image(str(path)))
        except Exception as error:  # PIL and transformers raise half a dozen types
            raise OptionError(
                f"image {path} cannot be read as a picture: give a PNG, JPEG or other image file"
            ) from error
    return images


def reference_name() -> str:
    """What made the golden tensors."""
    import torch
    import transformers

    return f"PyTorch {torch.__version__}, transformers {transformers.__version__}, eager"


def write_golden(
    root: Path, images: Sequence[Image.Image], record: Golden, tensors: dict[str, npt.NDArray[Any]]
) -> None:
    """Write `golden/` into a bundle directory; `record.images` names one file per picture."""
    (root / "golden").mkdir()
    for name, image in zip(record.images, images, strict=True):
        image.save(root / name)
    np.savez(root / GOLDEN_TENSORS, **tensors)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for a tensor
    text = json.dumps({**vars(record), "images": list(record.images)}, indent=2, ensure_ascii=False)
    (root / GOLDEN_RECORD).write_text(text + "\n", encoding="utf-8")
