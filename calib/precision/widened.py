"""float32 weights that are kept in 16 bits: in memory as a tensor that widens itself when it is read, in a
file as `Cast(weight)`.

A decoder that is going to be converted never needs its float32 weights as a whole: written in 16 bits, the
file in between has half the size. Widening is exact, so what is made of the weights is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Widened", "fold_casts", "numbers_of", "write_as_casts"]

_FULL = ir.DataType.FLOAT
_STORED = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Widened(ir.LazyTensor):
    """float32 values of the 16-bit tensor `source`, computed each time they are read."""

    def __init__(self, source: ir.TensorProtocol) -> None:
        super().__init__(
            lambda: ir.Tensor(source.numpy().astype(np.float32)),
            dtype=_FULL,
            shape=ir.Shape(source.shape.numpy()),
            name=source.name,
        )
        self.source = source


def numbers_of(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """The values in the dtype they are kept in, so that they can be widened piece by piece."""
    return tensor.source.numpy() if isinstance(tensor, Widened) else tensor.numpy()


def fold_casts(model: ir.Model) -> int:
    """Replace every `Cast(16-bit weight)` to float32 by a `Widened` weight of the same name; returns how
    many weights. One that is also used in 16 bits, in a subgraph or as an output of the graph is left
    alone."""
    graph, folded = model.graph, 0
    for value in list(graph.initializers.values()):
        casts = [use.node for use in value.uses()]
        if value.const_value is None or value.dtype not in _STORED or value.is_graph_output():
            continue
        if not casts or not all(_widens(cast, graph) for cast in casts):
            continue
        value.const_value, value.type = Widened(value.const_value), ir.TensorType(_FULL)
        for cast in casts:
            ir.convenience.replace_all_uses_with(cast.outputs[0], value)
            graph.remove(cast, safe=True)
        folded += 1
    return folded


def write_as_casts(model: ir.Model) -> None:
    """The way back: every `Widened` weight becomes its 16-bit source and a Cast."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        if not isinstance(value.const_value, Widened):
            continue
        users = list(value.uses())
        value.const_value = value.const_value.source
        value.type = ir.TensorType(value.const_value.dtype)
        cast = ir.node("Cast", [value], {"to": _FULL})
        cast.outputs[0].name = f"{value.name}.widened"
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(_FULL), value.shape
        graph.insert_before(graph[0], cast)
        for user in users:
            user.node.replace_input_with(user.idx, cast.outputs[0])


def _widens(node: ir.Node, graph: ir.Graph) -> bool:
    if node.domain != "" or node.op_type != "Cast" or node.attributes.get_int("to", 0) != _FULL:
        return False
    return node.graph is graph and not node.outputs[0].is_graph_output()
