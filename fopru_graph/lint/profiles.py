"""Sizes that an engine is built for: given by the user, else derived from the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fopru_graph.errors import OptionError
from fopru_graph.lint.graph import GraphView, constants, view_of
from fopru_graph.lint.rules_topk import most_selected
from fopru_graph.options import NUM_KEEP, TOKEN_SCORES
from fopru_graph.shapes import Dim, attribute_int, dims

__all__ = ["POINTS", "Profile", "at_point", "derive_profiles", "read_on_host"]

POINTS = ("minimum", "optimum", "maximum")

_IMAGES = (1, 1, 4)
_RATIO = 0.3


@dataclass(frozen=True)
class Profile:
    """Least, usual and greatest dims of one input; of an input that the host reads (`num_keep`), the content.

    Raises:
        OptionError: lengths differ, or a number is below 0 or out of order.
    """

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __post_init__(self) -> None:
        points = (self.minimum, self.optimum, self.maximum)
        rising = all(
            0 <= low <= usual <= high for low, usual, high in zip(*points, strict=False)
        )  # lengths are compared first
        if len({len(point) for point in points}) != 1 or not rising:
            raise OptionError(
                f"profile is {points[0]}, {points[1]}, {points[2]}, but it is minimum <= optimum <= maximum "
                "in every place, all >= 0"
            )

    def at(self, point: str) -> tuple[int, ...]:
        """The dims, or the content, at one of `POINTS`."""
        return {"minimum": self.minimum, "optimum": self.optimum, "maximum": self.maximum}[point]


def derive_profiles(view: GraphView, given: Mapping[str, Profile], topk_limit: int) -> dict[str, Profile]:
    """A profile for every input that varies: images 1, 1, 4; `num_keep` 1, 30 %, all up to `topk_limit`.

    Args:
        view: the graph.
        given: profiles by input name, which go before.
        topk_limit: greatest K of a TopK.

    Raises:
        OptionError: a profile of an input that is not there or of another rank, or one that is needed and
            cannot be derived.
    """
    inputs = {str(value.name): value for value in view.model.graph.inputs if not value.is_initializer()}
    unknown = [name for name in given if name not in inputs]
    if unknown:
        raise OptionError(f"profile of input '{unknown[0]}', but the inputs are {', '.join(inputs)}")
    first = next((dims(value) for value in inputs.values() if dims(value)), None)
    images = first[0] if first else None
    profiles: dict[str, Profile] = {}
    for name, value in inputs.items():
        if name in given:
            profiles[name] = _checked(name, value, given[name])
        elif name != NUM_KEEP and not _static(dims(value)):
            profiles[name] = _sizes(name, dims(value), images)
    if NUM_KEEP in inputs and NUM_KEEP not in given:
        profiles[NUM_KEEP] = _kept(view, profiles, topk_limit)
    return profiles


def read_on_host(value: ir.Value) -> bool:
    """Whether the content of an input may size other tensors: integers, rank 0 or 1, of fixed length."""
    sizes = dims(value)
    integers = value.dtype in (ir.DataType.INT32, ir.DataType.INT64)
    return integers and sizes is not None and len(sizes) <= 1 and _static(sizes)


def at_point(model: ir.Model, profiles: Mapping[str, Profile], point: str) -> ir.Model:
    """The model with every input fixed to one point; inputs that the host reads become constants, as only so
    the sizes that hang on them can be told."""
    fixed = model.clone()
    for value in list(fixed.graph.inputs):
        profile = profiles.get(str(value.name))
        if profile is None:
            continue
        if not read_on_host(value):
            value.shape = ir.Shape(profile.at(point))
            continue
        dtype = np.int32 if value.dtype == ir.DataType.INT32 else np.int64
        content = np.array(profile.at(point), dtype)
        content = content if dims(value) else content.reshape(())
        fixed.graph.inputs.remove(value)
        value.const_value = ir.tensor(content, name=value.name)
        fixed.graph.register_initializer(value)
    for node in fixed.graph:
        for value in node.outputs:
            value.shape = None  # names of sizes, which inference would keep where it could tell the number
    return fixed


def _checked(name: str, value: ir.Value, profile: Profile) -> Profile:
    sizes = dims(value)
    if sizes is None:
        return profile
    if read_on_host(value):
        length = sizes[0] if sizes else 1
        if len(profile.minimum) != length:
            raise OptionError(
                f"profile of input '{name}' has {len(profile.minimum)} numbers, but the input holds {length}"
            )
        return profile
    fits = len(profile.minimum) == len(sizes) and all(
        not isinstance(size, int) or profile.minimum[at] == size == profile.maximum[at]
        for at, size in enumerate(sizes)
    )
    if not fits:
        raise OptionError(
            f"profile of input '{name}' is {profile.minimum} to {profile.maximum}, but its dims are {sizes}"
        )
    return profile


def _sizes(name: str, sizes: tuple[Dim, ...] | None, images: Dim) -> Profile:
    open_dims = [size for size in sizes or (None,) if not isinstance(size, int) and size != images]
    if sizes is None or open_dims:
        raise OptionError(
            f"input '{name}' has dims {sizes}, and more than the number of images varies: give its profile"
        )
    points = [tuple(size if isinstance(size, int) else number for size in sizes) for number in _IMAGES]
    return Profile(*points)


def _kept(view: GraphView, profiles: Mapping[str, Profile], topk_limit: int) -> Profile:
    """From one token, or one grid row, to all of them; where their number varies, to all at each point."""
    fixed = [view_of(at_point(view.model, profiles, point)) for point in POINTS]
    tokens = [_tokens(each) for each in fixed]
    step = _step(next(value for value in view.model.graph.inputs if value.name == NUM_KEEP))
    counts = [number for number in tokens if number is not None]
    if len(counts) < len(POINTS):
        raise OptionError(
            f"the number of tokens cannot be told, so '{NUM_KEEP}' can be anything: give its profile"
        )
    most = max(step, min(counts[-1], topk_limit * step))
    usual = min(most, max(step, int(counts[1] * _RATIO + 0.5) // step * step))
    return Profile((step,), (usual,), (most,))


def _step(value: ir.Value) -> int:
    """C where `num_keep` is divided into whole grid rows of C tokens, else 1."""
    for use in value.uses():
        node = use.node
        divisor = constants(node.inputs[-1]) if node.op_type == "Div" and use.idx == 0 else None
        if divisor:
            return divisor[0]
    return 1


def _tokens(view: GraphView) -> int | None:
    """N, off the scores, or off the longest axis that a TopK selects from by an input."""
    for value in view.model.graph.outputs:
        sizes = dims(value)
        if value.name == TOKEN_SCORES and sizes is not None and isinstance(sizes[-1], int):
            return sizes[-1]
    lengths = [
        most_selected(site.node)
        for site in view.of("TopK")
        if attribute_int(site.node, "largest", 1) and constants(site.node.inputs[1]) is None
    ]
    return max((length for length in lengths if length is not None), default=None)


def _static(sizes: tuple[Dim, ...] | None) -> bool:
    return sizes is not None and all(isinstance(size, int) for size in sizes)
