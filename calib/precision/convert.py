"""Graph files in another precision: read, change, write, without a whole model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.precision.half import halve
from calib.precision.listing import some_of
from calib.precision.names import CALIBRATED, HALVES, Precision, spoken
from calib.precision.qdq import INT4_OPSET, Dialect, QdqFormat, add_qdq
from calib.precision.scaled import Scaled
from calib.precision.weight_file import INLINE_BYTES, WeightFile, row_chunks, source_of
from calib.precision.weight_only import quantize_weights
from calib.precision.widened import Widened, fold_casts, numbers_of
from fopru_graph.files import write_model

__all__ = ["NO_SCALES", "Converted", "Scales", "convert_graph", "convert_model"]


@dataclass(frozen=True)
class Scales:
    """What `w8a8` and `fp8` need of data: `amax`, the greatest magnitude of each activation by tensor name,
    and `skip`, the weights whose products stay as they are."""

    amax: Mapping[str, float] = field(default_factory=dict)
    skip: frozenset[str] = frozenset()


NO_SCALES = Scales()
"""Of precisions that are about weights alone."""


@dataclass(frozen=True)
class Converted:
    """One graph in its precision.

    Attributes:
        nodes: of the graph.
        replaced: matrices and tables in 4 or 8 bits, or products; 0 for fp16 and bf16.
        notes: what kept more bits although the user may expect otherwise, in sentences.
    """

    nodes: int
    replaced: int
    notes: tuple[str, ...]


def convert_graph(
    source: Path, target: Path, precision: Precision, file: WeightFile, *, tensorrt: bool = False
) -> Converted:
    """Write `target` beside `file`, which gets every weight that no graph before has put into it or into the
    file before it; see `convert_model`.

    Raises:
        OptionError: a weight that float16 cannot hold.
        GraphFileError: the target cannot be written.
    """
    model = ir.load(source)
    fold_casts(model)
    converted = convert_model(model, precision, file, tensorrt=tensorrt)
    write_model(model, target)
    return converted


def convert_model(
    model: ir.Model,
    precision: Precision,
    file: WeightFile,
    *,
    tensorrt: bool = False,
    scales: Scales = NO_SCALES,
) -> Converted:
    """Change a model in place; afterwards every weight of more than 256 bytes lies in `file` or one before
    it.

    Args:
        model: sorted, in float32.
        precision: what it becomes.
        file: where weights go.
        tensorrt: weights in 4 bits are written as TensorRT reads them, dequantised in front of products in
            float16 (`qdq`), and not as products of ONNX Runtime's own; activations in 8 bits are signed;
            what stays around quantised products is float16.
        scales: for `w8a8` and `fp8`.

    Raises:
        OptionError: a weight that float16 cannot hold, or scales that are not of this graph.
    """
    replaced, notes = 0, []
    if precision.weight_only and tensorrt:
        dialect: Dialect = "tensorrt" if model.opset_imports[""] < INT4_OPSET else "blocked"
        done = add_qdq(model, QdqFormat(precision.name, precision.block, dialect), {}, file)
        halve(model, file)
        replaced = done.products
        if done.left:
            notes.append(_left_note(done.left, precision, "float16"))
    elif precision.name in CALIBRATED:
        unsigned = precision.name == "w8a8" and not tensorrt
        form = QdqFormat(spoken(precision.name), unsigned=unsigned)
        done = add_qdq(model, form, scales.amax, file, skip=scales.skip)
        if tensorrt:
            halve(model, file)
        replaced = done.products
    elif precision.weight_only:
        found = quantize_weights(model, precision, file)
        replaced = found.matrices + found.tables
        if found.left:
            notes.append(_left_note(found.left, precision, "float32"))
    elif precision.name in HALVES:
        halve(model, file, precision.name)
    _copy_rest(model.graph, file)
    return Converted(sum(1 for _ in model.graph.all_nodes()), replaced, tuple(notes))


def _left_note(left: Sequence[str], precision: Precision, word: str) -> str:
    odd = " or they have an odd number of columns" if word == "float16" else ""  # 4 bits are packed in pairs
    block = f"{precision.block}{odd}"
    return f"{precision.name}: {some_of(left)} stay {word}, their rows are not a multiple of {block}"


def _copy_rest(graph: ir.Graph, file: WeightFile) -> None:
    """Bring weights that stay as they are, so that the file they lie in is not needed."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not _is_elsewhere(tensor, file):
            continue
        if tensor.nbytes <= INLINE_BYTES:  # shapes and axes, which ONNX Runtime wants to see in the graph
            value.const_value = ir.tensor(np.array(tensor.numpy()), name=value.name)
            file.keep(tensor)
            continue
        key = (source_of(tensor), "copy", tensor.dtype)
        if key not in file.known:
            file.known[key] = file.write(
                str(value.name), tensor.dtype, tuple(tensor.shape.numpy()), _parts(tensor)
            )
            file.keep(tensor)
        value.const_value = file.known[key]


def _is_elsewhere(tensor: ir.TensorProtocol, file: WeightFile) -> bool:
    if isinstance(tensor, (Widened, Scaled)):
        return True
    return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve() not in file.paths


def _parts(tensor: ir.TensorProtocol) -> Iterator[npt.NDArray[Any]]:
    flat = numbers_of(tensor).reshape(-1)
    for part in row_chunks(flat.size, tensor.dtype.bitwidth // 8):
        yield flat[part].astype(tensor.dtype.numpy(), copy=False)
