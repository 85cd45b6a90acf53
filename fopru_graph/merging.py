"""From patches to tokens: encoders that merge s x s patches into one, or work in another order than reading.

Rows cannot be followed through a merger, so the options say how patches become tokens; what the sizes of
the graph tell is checked. The grouping is that of FoPru specification, section 7.1: merged token (y, x) is
made of the patches (s y + a, s x + b), and its score is their mean.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import onnx_ir as ir

from fopru_graph.attention import AttentionCore
from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import LocateError, OptionError
from fopru_graph.lineage import Lineage, follow, row_offset
from fopru_graph.options import PruneOptions
from fopru_graph.shapes import Dim, dims
from fopru_graph.specials import special_rows

if TYPE_CHECKING:
    from fopru_graph.passes.locate import Located

__all__ = ["check_merged", "looks_merged", "order_input", "rows_before_patches", "token_scores"]

_FLOAT = ir.DataType.FLOAT
_MOST_MERGED = 16  # patches along a side of a token that anybody merges


def check_merged(options: PruneOptions, features: ir.Value, core: AttentionCore, lineage: Lineage) -> None:
    """Refuse what cannot be merged as stated, as far as the sizes tell.

    Raises:
        LocateError: the attention looks at windows; or nothing is merged, and nothing changes its place.
        OptionError: the grid is not that of the features, or the number of tokens varies under a fixed grid.
    """
    stated = f"merge is {options.merge}" if options.merge > 1 else f"token_order is '{options.token_order}'"
    images, rows = (dims(features) or (None, None))[:2]
    of_attention, queries = (dims(core.anchor) or (None,))[0], (dims(core.anchor) or ())[core.query_axis]
    whole = f"'{features.name}' is [{images}, {rows}, width]"
    several = isinstance(images, str) and images in str(of_attention).split("*")
    windows = (several or isinstance(images, int)) and of_attention not in (None, images)
    windows |= isinstance(queries, int) and isinstance(rows, str)
    windows |= isinstance(queries, int) and isinstance(rows, int) and queries < rows
    if windows:
        raise LocateError(
            f"attention '{core.node.name}' is [{of_attention}, heads, {queries}, keys], but {whole}: it "
            "looks at windows of the image, name a layer that looks at all of it"
        )
    if row_offset(lineage, core.anchor, core.query_axis) is not None or (
        options.merge > 1 and isinstance(rows, str) and queries == rows
    ):
        raise LocateError(
            f"{stated}, but {whole}, whose rows are those of attention '{core.node.name}' in the same order: "
            "leave merge at 1 and token_order at None, or export again if two sizes share a name"
        )
    grid = options.grid
    if options.merge == 1 or not isinstance(grid, tuple) or options.merge_order != "row_major":
        return
    if not isinstance(rows, int):
        raise OptionError(
            f"{stated} in order 'row_major' and grid is {grid[0]}x{grid[1]}, but the number of rows of "
            f"'{features.name}' varies: export with a fixed image size"
        )
    if grid[0] * grid[1] != rows:
        raise OptionError(
            f"{stated} and grid is {grid[0]}x{grid[1]} = {grid[0] * grid[1]} tokens, but '{features.name}' "
            f"has {rows} rows: give the grid of the merged tokens"
        )


def rows_before_patches(options: PruneOptions, features: ir.Value, core: AttentionCore) -> int:
    """Leading attention rows that are no patches: as stated, or as found; they never become tokens.

    Raises:
        LocateError: what is left of the attention's rows is not s * s for each row of the features; or the
            graph does not tell how many rows are no patches.
    """
    queries, rows = (dims(core.anchor) or ())[core.query_axis], (dims(features) or (None, None))[1]
    found = special_rows(follow(core.anchor, core.query_axis), 0)
    special = options.special_tokens if options.special_tokens is not None else found
    if isinstance(queries, int) and isinstance(rows, int):
        patches = rows * options.merge**2
        special = 0 if special is None and queries <= patches else special
        if special is not None and queries - special != patches:
            of_each = f"{options.merge} x {options.merge} patches for each of " if options.merge > 1 else ""
            raise LocateError(
                f"attention '{core.node.name}' has {queries} rows, {special} of them special, but "
                f"{of_each}the {rows} rows of '{features.name}' are {patches} patches: state merge, and "
                f"special_tokens where it is not {special}"
            )
    if special is None:
        raise LocateError(
            f"cannot tell how many of the first of {queries} rows of attention '{core.node.name}' are no "
            "patches (class token, registers): state special_tokens, 0 if there are none"
        )
    return special


def order_input(graph: ir.Graph, name: str | None, rows: Dim) -> ir.Value | None:
    """The graph input that `token_order` names.

    Raises:
        OptionError: there is none of that name, dtype and shape.
    """
    if name is None:
        return None
    found = next((value for value in graph.inputs if value.name == name), None)
    if found is None:
        known = ", ".join(str(value.name) for value in graph.inputs)
        raise OptionError(f"token_order is '{name}', but the inputs are {known}: name one of them, int64 [N]")
    sizes = dims(found) or ()
    fits = len(sizes) == 1 or (len(sizes) == 2 and sizes[0] == 1)
    other = fits and isinstance(sizes[-1], int) and isinstance(rows, int) and sizes[-1] != rows
    if found.dtype != ir.DataType.INT64 or not fits or other:
        raise OptionError(
            f"token_order is '{name}', {found.dtype} with dims {sizes}, but an order is INT64 [{rows}] or "
            f"[1, {rows}], one number per token: name the input that puts tokens into order"
        )
    return found


def looks_merged(features: ir.Value, core: AttentionCore) -> int | None:
    """s, if the attention has s * s rows for each row of the features and one to itself for special ones.

    Only where both numbers are fixed.
    """
    queries, rows = (dims(core.anchor) or ())[core.query_axis], (dims(features) or (None, None))[1]
    if not isinstance(queries, int) or not isinstance(rows, int) or rows < 1:
        return None
    special = special_rows(follow(core.anchor, core.query_axis), 0)
    for count in (special,) if special is not None else (0, 1):
        side = math.isqrt(max(0, queries - count) // rows)
        if 2 <= side <= _MOST_MERGED and queries - count == rows * side**2:
            return side
    return None


def token_scores(
    builder: GraphBuilder, located: Located, options: PruneOptions, patches: ir.Value
) -> ir.Value:
    """float32 [images, N] in the order of the features, from float32 [images, P] in that of the patches."""
    scores = patches
    if options.merge > 1:
        merged = _row_major if options.merge_order == "row_major" else _packed
        scores = merged(builder, located, options, patches)
    if located.order is None:
        return scores
    order = located.order
    made = Made("ordered_scores", _FLOAT, ((dims(patches) or (None,))[0], located.tokens))
    if len(dims(order) or ()) == 2:
        flat = Made("token_order", ir.DataType.INT64, (located.tokens,))
        order = builder.op("Squeeze", [order, builder.ints("axis", [0])], flat)
    return builder.op("Gather", [scores, order], made, {"axis": 1})


def _packed(builder: GraphBuilder, located: Located, options: PruneOptions, patches: ir.Value) -> ir.Value:
    """The s * s patches of a token lie together."""
    images, size = (dims(patches) or (None,))[0], options.merge**2
    made = Made("score_groups", _FLOAT, (images, located.tokens, size))
    groups = builder.op("Reshape", [patches, builder.ints("groups", [0, -1, size])], made)
    return builder.mean(groups, 2, Made("merged_scores", _FLOAT, (images, located.tokens)))


def _row_major(builder: GraphBuilder, located: Located, options: PruneOptions, patches: ir.Value) -> ir.Value:
    """Token (y, x) is made of patches (s y + a, s x + b), patches in reading order."""
    rows, columns = cast("tuple[int, int]", options.grid)  # the options saw to it
    images, side = (dims(patches) or (None,))[0], options.merge
    sizes = (images, rows, side, columns, side)
    target = builder.ints("groups", [0, rows, side, columns, side])
    groups = builder.op("Reshape", [patches, target], Made("score_groups", _FLOAT, sizes))
    across = builder.mean(groups, 4, Made("scores_across", _FLOAT, sizes[:4]))
    down = builder.mean(across, 2, Made("scores_down", _FLOAT, (images, rows, columns)))
    flat = builder.ints("flat", [0, -1])
    return builder.op("Reshape", [down, flat], Made("merged_scores", _FLOAT, (images, located.tokens)))
