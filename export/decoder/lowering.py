"""What the lowerings share: finding the open attentions, and building nodes before them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.decoder.trace import ATTENTION, DOMAIN
from runtime import contract

__all__ = ["Attention", "Builder", "attentions", "finish", "put_in_place"]


class Builder:
    """Nodes in the making, all inserted before one node of the graph."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        """`prefix` begins the names of constants."""
        self._graph, self._prefix = graph, prefix
        self._tape = ir.tape.Tape()
        self._constants = 0

    def op(self, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """One standard operator with one output."""
        return self._tape.op(name, list(inputs), attributes)

    def ops(self, name: str, *inputs: ir.Value, outputs: int, domain: str = "", **attributes: Any) -> Any:
        """One operator with several outputs."""
        return self._tape.op_multi_out(name, list(inputs), attributes, num_outputs=outputs, domain=domain)

    def ints(self, *values: int) -> ir.Value:
        """A constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def constant(self, array: Any) -> ir.Value:
        """A constant of any shape."""
        name = f"{self._prefix}.constant_{self._constants}"
        self._constants += 1
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self._graph.register_initializer(value)
        return value

    def size(self, tensor: ir.Value, axis: int) -> ir.Value:
        """One dimension of a tensor, int64 [1]."""
        return self.op("Shape", tensor, start=axis, end=axis + 1)

    def insert_before(self, node: ir.Node) -> None:
        """Put all nodes made so far into the graph."""
        self._graph.insert_before(node, list(self._tape.nodes))


@dataclass(frozen=True)
class Attention:
    """One open attention: its node, inputs and numbers."""

    node: ir.Node
    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int
    softcap: float

    @property
    def states(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Query [batch, heads, seq, head_dim], new key and value [batch, kv_heads, seq, head_dim]."""
        query, key, value = self.node.inputs[:3]
        return _given(query), _given(key), _given(value)

    @property
    def past(self) -> tuple[ir.Value, ir.Value]:
        """Past key and value."""
        key, value = self.node.inputs[3:5]
        return _given(key), _given(value)


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None  # every input of our own node is there
    return value


def attentions(model: ir.Model) -> Iterator[Attention]:
    """The open attentions, in the order of the graph."""
    for node in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, ATTENTION)]:
        numbers = node.attributes
        shape = node.outputs[0].shape
        assert shape is not None
        yield Attention(
            node=node,
            layer=numbers["layer"].as_int(),
            heads=numbers["num_heads"].as_int(),
            kv_heads=numbers["kv_num_heads"].as_int(),
            head_dim=int(shape[3]),  # type: ignore[arg-type]
            scale=numbers["scale"].as_float(),
            window=numbers["window"].as_int(),
            softcap=numbers["softcap"].as_float(),
        )


def put_in_place(
    graph: ir.Graph, attention: Attention, out: ir.Value, present: tuple[ir.Value, ir.Value]
) -> None:
    """Let `out` and the cache outputs `present` take over, and remove the open attention."""
    for part, new in zip(("key", "value"), present, strict=True):
        name = contract.present_name(attention.layer, part)
        index = [output.name for output in graph.outputs].index(name)
        old = graph.outputs[index]
        old.name = f"{name}.rows"
        new.name, new.type = name, old.type
        graph.outputs[index] = new
    attention.node.outputs[0].replace_all_uses_with(out)
    graph.remove(attention.node, safe=True)


def finish(model: ir.Model, table: contract.GraphContract) -> None:
    """Give inputs and outputs the shapes of the contract, and drop what nothing uses any more."""
    for values, specs in ((model.graph.inputs, table.inputs), (model.graph.outputs, table.outputs)):
        for value, spec in zip(values, specs, strict=True):
            assert value.name == spec.name
            value.shape = ir.Shape(spec.shape)
    RemoveUnusedNodesPass()(model)
    model.opset_imports.pop(DOMAIN, None)
