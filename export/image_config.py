"""The image processor of a checkpoint as the `preprocess` record; what the record cannot say is refused."""

from __future__ import annotations

from typing import Any

from export.errors import CheckpointError
from runtime.manifest import Preprocess

__all__ = ["preprocess_from_processor"]

# These do resize → crop → rescale → normalise and nothing else; LLaVA's own also pads to a square first.
_KNOWN = ("CLIPImageProcessor", "SiglipImageProcessor", "LlavaImageProcessor")


def preprocess_from_processor(processor: Any, image_size: tuple[int, int]) -> Preprocess:
    """Read resize, crop, rescale and normalisation from a transformers image processor.

    Args:
        processor: the image processor of the checkpoint (any backend).
        image_size: (H, W) that the tower takes.

    Raises:
        CheckpointError: an unknown processor, a step or size that cannot be expressed, or a size that does
        not fit.
    """
    kind = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if kind not in _KNOWN:
        raise _unsupported(f"its class is {kind}", f"the supported ones are {', '.join(_KNOWN)}")
    if not _setting(processor, "do_resize", True):
        raise _unsupported("do_resize is false", "images of any size must become one size, so set it to true")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if _setting(processor, "do_normalize", True):
        mean, std = _three(processor, "image_mean"), _three(processor, "image_std")
    rescale = float(processor.rescale_factor) if _setting(processor, "do_rescale", True) else 1.0
    pad = None
    if kind == "LlavaImageProcessor" and _setting(processor, "do_pad", False):
        pad = tuple(int(value * 255) for value in mean)  # the rounding of LlavaImageProcessor
    resize = _resize(processor)
    crop = _size(processor, "crop_size") if _setting(processor, "do_center_crop", False) else None
    if crop is not None and set(crop) != {"height", "width"}:
        raise _unsupported(f"crop_size is {crop}", "it must have height and width")
    made = crop if crop is not None else resize
    if made.get("height") != image_size[0] or made.get("width") != image_size[1]:
        raise _unsupported(
            f"it makes images of {made}", f"the vision tower takes {image_size[0]} x {image_size[1]}"
        )
    return Preprocess(
        resize=resize,
        resample=int(processor.resample),
        crop=crop,
        pad_to_square=pad,  # type: ignore[arg-type]  # three values: `mean` has three
        rescale_factor=rescale,
        mean=mean,
        std=std,
    )


def _resize(processor: Any) -> dict[str, int]:
    size = _size(processor, "size")
    if set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise _unsupported(f"size is {size}", "it must be shortest_edge alone, or height and width")
    return size


def _size(processor: Any, name: str) -> dict[str, int]:
    value = getattr(processor, name, None) or {}
    return {key: int(number) for key, number in dict(value).items() if number is not None}


def _setting(processor: Any, name: str, default: bool) -> bool:
    value = getattr(processor, name, None)
    return default if value is None else bool(value)


def _three(processor: Any, name: str) -> tuple[float, float, float]:
    value = getattr(processor, name)
    numbers = [float(value)] * 3 if isinstance(value, int | float) else [float(number) for number in value]
    if len(numbers) != 3:
        raise _unsupported(f"{name} is {value}", "it must have one value or three, for red, green and blue")
    return numbers[0], numbers[1], numbers[2]


def _unsupported(got: str, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"the image processor cannot be written into a bundle: {got}, but {allowed}; change "
        "preprocessor_config.json"
    )
