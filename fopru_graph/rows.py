"""Which rows of the features are which rows of the attention; refused where the graph does not say."""

from __future__ import annotations

import onnx_ir as ir

from fopru_graph.attention import AttentionCore, key_operand, query_operand
from fopru_graph.errors import LocateError
from fopru_graph.lineage import Lineage, Stop, row_offset, same_rows
from fopru_graph.merging import looks_merged
from fopru_graph.options import PruneOptions
from fopru_graph.shapes import Dim, dims
from fopru_graph.specials import special_rows, trailing_rows

__all__ = ["check_keys", "dropped_rows", "prefix_and_special"]


def dropped_rows(features: ir.Value, core: AttentionCore, lineage: Lineage, stated: int | None) -> int:
    """o: attention row of the first row of the features; followed through the graph, or as stated."""
    queries = (dims(core.anchor) or ())[core.query_axis]
    rows = (dims(features) or (None, None))[1]
    images = [(dims(value) or (None,))[0] for value in (features, core.anchor)]
    if all(isinstance(count, int) for count in images) and images[0] != images[1]:
        raise LocateError(
            f"'{features.name}' has {images[0]} images and attention '{core.node.name}' {images[1]}: name "
            "a layer that looks at whole images, not at windows of them"
        )
    found = row_offset(lineage, core.anchor, core.query_axis)
    spare = queries - rows if isinstance(queries, int) and isinstance(rows, int) else None
    if stated is None:
        if found is None or (spare is not None and found > spare):
            raise LocateError(_unknown_rows(features, core, (queries, rows), lineage.stops))
        return found
    if found is None and not isinstance(rows, int):
        raise LocateError(
            f"dropped_rows is {stated}, but '{features.name}' has a varying number of rows that cannot be "
            "followed to the attention: export with a fixed image size"
        )
    if spare is not None and stated > spare:
        raise LocateError(
            f"dropped_rows is {stated}, but attention '{core.node.name}' has {queries} rows and "
            f"'{features.name}' {rows}: give at most {spare}"
        )
    if found is not None and found != stated:
        raise LocateError(
            f"dropped_rows is {stated}, but row 0 of '{features.name}' is row {found} of attention "
            f"'{core.node.name}': leave dropped_rows at None"
        )
    return stated


def check_keys(core: AttentionCore) -> None:
    """Keys must be made from the rows that queries are made from, in their order; sizes do not say so."""
    if not same_rows(query_operand(core), key_operand(core)):
        raise LocateError(
            f"cannot tell that keys and queries of attention '{core.node.name}' are the same tokens in the "
            "same order, and a score is of a key: name another layer, or vouch for its probabilities with tap"
        )


def prefix_and_special(
    options: PruneOptions, features: ir.Value, lineage: Lineage, dropped: int
) -> tuple[int, int, str]:
    """p, the leading attention rows that are not patches, and a note: as stated, as found, or as follows."""
    prefix, special = options.prefix_tokens, options.special_tokens
    if special is None:
        special = special_rows(lineage, dropped)
    if prefix is None and special is None and not dropped:
        raise LocateError(
            f"cannot tell how many of the first rows of '{features.name}' are no patches (class token, "
            "registers): state special_tokens, 0 if there are none"
        )
    if prefix is None:
        prefix = max(0, (special or 0) - dropped)
    if special is not None:
        behind = trailing_rows(lineage)
        note = f"{behind} rows behind the patches are no patches, but are scored and selected as if they were"
        return prefix, special, note if behind else ""
    note = (
        f"special tokens cannot be seen in the graph: taken as {dropped + prefix}, the rows that are dropped "
        "or kept anyway; state special_tokens if there are more"
    )
    return prefix, dropped + prefix, note


def _unknown_rows(
    features: ir.Value, core: AttentionCore, counts: tuple[Dim, Dim], stops: tuple[Stop, ...]
) -> str:
    queries, rows = counts
    if isinstance(queries, int) and isinstance(rows, int) and queries < rows:
        return (
            f"attention '{core.node.name}' has {queries} rows, fewer than the {rows} of '{features.name}': "
            "it looks at windows of the image, name a layer that looks at all of it"
        )
    where = f"; following them stopped at {stops[0]}" if stops else ""
    side = looks_merged(features, core)
    way_out = (
        "if no node between them reorders tokens, state dropped_rows, the leading attention rows that never "
        "become features"
        if side is None
        else f"it looks merged {side} x {side}, state merge={side} and merge_order"
    )
    return (
        f"cannot tell which of the {queries} rows of attention '{core.node.name}' are the {rows} rows of "
        f"'{features.name}'{where}: {way_out}"
    )
