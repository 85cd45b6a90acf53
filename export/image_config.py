"""Settings of transformers' image processors, as families read them; what no record can say is refused."""

from __future__ import annotations

from typing import Any

from export.errors import CheckpointError
from runtime.manifest import Preprocess

__all__ = ["preprocess_from_processor", "processor_kind", "setting", "size_setting", "unsupported"]


def preprocess_from_processor(processor: Any) -> Preprocess:
    """Resampling, rescaling and normalisation of a transformers image processor (any backend).

    Raises:
        CheckpointError: no resizing, or numbers of another form.
    """
    if not setting(processor, "do_resize", True):
        raise unsupported("do_resize is false", "images of any size must become one size, so set it to true")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if setting(processor, "do_normalize", True):
        mean, std = _three(processor, "image_mean"), _three(processor, "image_std")
    rescale = float(processor.rescale_factor) if setting(processor, "do_rescale", True) else 1.0
    return Preprocess(resample=int(processor.resample), rescale_factor=rescale, mean=mean, std=std)


def processor_kind(processor: Any, known: tuple[str, ...]) -> str:
    """Name of the processor's class, whatever its backend.

    Raises:
        CheckpointError: it is none of the `known`, whose steps the family has a layout for.
    """
    kind = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if kind not in known:
        raise unsupported(f"its class is {kind}", f"the supported ones are {', '.join(known)}")
    return kind


def setting(processor: Any, name: str, default: bool) -> bool:
    """A switch; what is left out, or None, is `default`."""
    value = getattr(processor, name, None)
    return default if value is None else bool(value)


def size_setting(processor: Any, name: str) -> dict[str, int]:
    """A size as the dict that it is in JSON, entries of None left out.

    Raises:
        CheckpointError: it is none, or not of numbers.
    """
    value = getattr(processor, name, None) or {}
    try:
        return {key: int(number) for key, number in dict(value).items() if number is not None}
    except (TypeError, ValueError) as error:
        raise unsupported(f"{name} is {value}", "it must be numbers by name") from error


def unsupported(got: str, allowed: str) -> CheckpointError:
    """The error for a setting that a bundle cannot express."""
    return CheckpointError(
        f"the image processor cannot be written into a bundle: {got}, but {allowed}; change "
        "preprocessor_config.json"
    )


def _three(processor: Any, name: str) -> tuple[float, float, float]:
    value = getattr(processor, name)
    numbers = [float(value)] * 3 if isinstance(value, int | float) else [float(number) for number in value]
    if len(numbers) != 3:
        raise unsupported(f"{name} is {value}", "it must have one value or three, for red, green and blue")
    return numbers[0], numbers[1], numbers[2]
