"""Pass 3, select: positions of the kept tokens, in reading order, their number given at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fopru_graph.attention import key_operand
from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import LocateError, OptionError, RewriteError
from fopru_graph.options import GRID, KEPT_INDICES, NUM_KEEP, TOKEN_MASK, PruneOptions
from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.passes.locate import Located
from fopru_graph.passes.score import Scored
from fopru_graph.selectors import SELECTORS, SelectContext
from fopru_graph.shapes import Dim, dims, same

__all__ = ["SelectPass", "Selected"]

_INT64 = ir.DataType.INT64


@dataclass(frozen=True)
class Selected:
    """`indices` is int64 [images, kept], ascending positions in 0..N-1; `added` counts nodes."""

    indices: ir.Value
    added: int


class SelectPass(GraphPass[Selected]):
    """Adds the input `num_keep` (int64 [1]) and the output `kept_indices`; how is the selector's business.

    Rules:
        1. A selector gets what it declares to need: scores, a grid, rows to compare.
        2. A grid that varies with the image is the input `grid` (int64 [2]: rows, columns).
        3. Selectors use no NonZero, Compress or Unique.
        4. A mask is the input `token_mask` (bool [images, N]); scores that go out are those without it.
        5. 1 <= `num_keep` <= N is the host's duty; runtimes stop with their own error above N.
    """

    name: ClassVar[str] = "select"

    def __init__(self, options: PruneOptions, located: Located, scored: Scored | None) -> None:
        super().__init__()
        self._options = options
        self._located = located
        self._scored = scored

    def requires(self, model: ir.Model) -> None:
        del model
        strategy, similarity = self._options.strategy, self._options.similarity
        if similarity is not None and not SELECTORS[strategy].needs_rows:
            comparing = ", ".join(name for name, each in SELECTORS.items() if each.needs_rows)
            raise OptionError(
                f"similarity is '{similarity}', but strategy '{strategy}' compares no rows: leave it at "
                f"None, or use one of {comparing}"
            )
        grid, tokens = self._options.grid, self._located.tokens
        if not isinstance(grid, tuple):
            return
        if not isinstance(tokens, int):
            raise OptionError(
                f"grid is {grid[0]}x{grid[1]}, but the number of tokens varies with the image: "
                "give grid='input' and feed the grid at run time"
            )
        if grid[0] * grid[1] != tokens:
            raise OptionError(
                f"grid is {grid[0]}x{grid[1]} = {grid[0] * grid[1]} tokens, but there are {tokens}: "
                "give the grid of the scored tokens, or use strategy 'rank' where they fill none"
            )

    def call(self, model: ir.Model) -> Rewritten[Selected]:
        located = self._located
        selector = SELECTORS[self._options.strategy]
        builder = GraphBuilder(model.graph, self.name)
        num_keep = _input(model.graph, NUM_KEEP, (1,))
        grid: tuple[int, int] | ir.Value | None = None
        if selector.needs_grid:
            grid = _input(model.graph, GRID, (2,)) if self._options.grid == "input" else self._options.grid
        images: Dim = (dims(located.features) or (None,))[0]
        mask: ir.Value | None = None
        if self._options.mask:
            mask = _input(model.graph, TOKEN_MASK, (images, located.tokens), ir.DataType.BOOL)
        keys, key_axis = key_operand(located.core)
        context = SelectContext(
            builder=builder,
            scores=self._scored.scores if self._scored is not None else None,
            num_keep=num_keep,
            images=images,
            tokens=located.tokens,
            keys=keys,
            key_axis=key_axis,
            first=located.first,
            grid=grid,
            rows=self._rows(model.graph, builder) if selector.needs_rows else None,
            seed=self._options.seed,
            merge=located.merge,
            mask=mask,
        )
        indices = selector.select(context)
        indices.name = KEPT_INDICES
        model.graph.outputs.append(indices)
        model.graph.sort()
        return Rewritten(model, Selected(indices, builder.added), builder.added)

    def ensures(self, model: ir.Model) -> None:
        if KEPT_INDICES not in {value.name for value in model.graph.outputs}:
            raise RewriteError(f"the select pass left no output '{KEPT_INDICES}' in the graph")

    def _rows(self, graph: ir.Graph, builder: GraphBuilder) -> ir.Value:
        """[images, N, D]: the tensor that a selector compares, without its prefix rows."""
        located, name = self._located, self._options.similarity
        value = located.features
        if name is not None:
            named = [out for node in graph for out in node.outputs if out.name == name]
            if not named:
                raise LocateError(
                    f"similarity '{name}' is no tensor of the graph: name one that a node makes"
                )
            value = named[0]
        sizes, rows = dims(value) or (), (dims(located.features) or (None, None))[1]
        if len(sizes) != 3 or not same(sizes[1], rows):
            raise LocateError(
                f"similarity '{name}' has dims {sizes}, but its rows must be those of the features, "
                f"[images, {rows}, width]"
            )
        if not located.prefix:
            return value
        made = Made("compared_rows", value.dtype or ir.DataType.FLOAT, (sizes[0], located.tokens, sizes[2]))
        return builder.slice(value, 1, (located.prefix, None), made)


def _input(graph: ir.Graph, name: str, sizes: tuple[Dim, ...], dtype: ir.DataType = _INT64) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(list(sizes)), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value
