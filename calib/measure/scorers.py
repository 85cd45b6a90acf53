"""Graphs that score by another layer or another aggregation than the bundle's pruned graph does.

Such a graph is the bundle's unpruned encoder with the output `token_scores`, made by `fopru_graph`. How
patches become tokens is not in the manifest; the bundle's own pruned graph shows it, as the rewriter stamps
the nodes that it adds. What is read from them is proven by pruning the unpruned encoder once more, the
bundle's way: the same nodes must come of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from calib.bundle_writer import is_gone
from calib.errors import RunError
from calib.measure.ways import Scoring
from runtime import contract
from runtime.bundle import Bundle
from runtime.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

    from fopru_graph import PruneOptions

__all__ = ["Scorers"]

_STAMP, _SCORE = "fopru.pass", "score"
_OPEN = ".open-"  # folders of graphs that are being opened


class Scorers:
    """Makes graphs that score a bundle's tokens another way."""

    def __init__(self, bundle: Bundle) -> None:
        """Read nothing yet."""
        self._bundle = bundle
        self._source = bundle.graph(contract.VISION_ENCODER)

    @contextlib.contextmanager
    def graph(self, scoring: Scoring, work: Path) -> Iterator[Path]:
        """The graph that scores so, made once in `work`, in a place where it can be opened now: it shares the
        weight file of the bundle, and may not be there afterwards.

        Pointers to weights are relative and may not leave the graph's folder, so that the weights get a
        second name there. It goes again at once: other tools read no weights through links. On another disk
        they are copied, and stay.

        Raises:
            RunError: the encoder cannot be scored so, the bundle does not show how, or the folder cannot be
                written.
        """
        folder = work / "score_graphs" / self._digest()[:16]
        name, place = f"layer_{scoring.layer}_{scoring.aggregation}.onnx", None
        options = None if (folder / name).is_file() else self._options_for(scoring)
        files = [self._source, *_weight_files(self._source)]
        try:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _clear(folder)
                place = Path(tempfile.mkdtemp(dir=folder, prefix=_OPEN, suffix=f"-{os.getpid()}"))
                where = place if _linked(files, place) else _copied(files, folder)
                if options is not None:
                    self._prune(where / self._source.name, folder / name, options, scoring)
                if where != folder:
                    shutil.copyfile(folder / name, where / name)
            except OSError as error:
                raise RunError(
                    f"cannot make a graph in {folder} ({error.strerror or error}): give another folder for "
                    "work"
                ) from error
            yield where / name
        finally:
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)

    def _prune(self, source: Path, target: Path, options: PruneOptions, scoring: Scoring) -> None:
        """Write the graph beside its weights, then into its place: another process may do the same now."""
        from fopru_graph import GraphError, prune_file

        partial = source.with_name(f".{os.getpid()}.{target.name}")
        try:
            prune_file(source, partial, options)
        except GraphError as error:
            raise self._refused(scoring, error) from error
        partial.replace(target)

    def check(self, scoring: Scoring) -> None:
        """Whether the encoder can be scored so; nothing is written.

        Raises:
            RunError: it cannot, or the bundle does not show how.
        """
        from fopru_graph import GraphError, load_graph, prune

        options = self._options_for(scoring)
        try:
            prune(load_graph(self._source), options)
        except GraphError as error:
            raise self._refused(scoring, error) from error

    @cached_property
    def options(self) -> PruneOptions:
        """The options that the bundle's pruned graph was made with, as far as they decide about scores.

        Raises:
            RunError: they cannot be read from it, or what is read makes other nodes.
        """
        from fopru_graph import GraphError, PruneOptions, load_graph, prune

        path, manifest = self._bundle.path, self._bundle.manifest
        stated = PruneOptions(
            aggregation=manifest.pruning.aggregation,
            layer=manifest.pruning.layer,
            prefix_tokens=manifest.layout.prefix_tokens,
            grid=manifest.layout.unit_grid,
        )
        try:
            pruned = load_graph(self._bundle.graph(contract.VISION_ENCODER_FOPRU))
            options = _read(pruned, stated)
            again = load_graph(self._source)
            prune(again, replace(options, scores_only=True))
        except GraphError as error:
            raise RunError(
                f"the vision encoder of {path} cannot be scored another way than it is ({error}): compare "
                "selectors and ratios only"
            ) from error
        made, found = _score_ops(again), _score_ops(pruned)
        if made != found:
            raise RunError(
                f"the pruned encoder of {path} scores by {', '.join(found) or 'nothing that is known'}, but "
                f"its unpruned encoder would by {', '.join(made)}: build the bundle again with "
                "`python -m export.build`, or compare selectors and ratios only"
            )
        return options

    def _options_for(self, scoring: Scoring) -> PruneOptions:
        return replace(self.options, layer=scoring.layer, aggregation=scoring.aggregation, scores_only=True)

    def _refused(self, scoring: Scoring, error: Exception) -> RunError:
        return RunError(
            f"the vision encoder of {self._bundle.path} has no scores of layer {scoring.layer} by "
            f"{scoring.aggregation} ({error}): leave it out of the comparison"
        )

    def _digest(self) -> str:
        """Of all that a scoring graph is made from: both graphs, the weights, and the code."""
        files, graphs = self._bundle.manifest.files, self._bundle.manifest.graphs
        names = [graphs[name].file for name in (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU)]
        names += [name for name in sorted(files) if name.endswith("_data")]
        made_of = [*(files[name].sha256 for name in names), __version__]
        return hashlib.sha256(" ".join(made_of).encode()).hexdigest()


def _read(pruned: ir.Model, options: PruneOptions) -> PruneOptions:
    """Special rows are cut off by the only Slice; patches are grouped by a Reshape to [0, R, s, C, s], or to
    [0, -1, s * s] where those of a token lie together."""
    special, merge, packed = 0, 1, False
    for node in _score_nodes(pruned):
        if node.op_type == "Slice":
            special = (_ints(node.inputs[1]) or [0])[0]
        elif node.op_type == "Reshape" and len(target := _ints(node.inputs[1])) == 5:
            merge = target[2]
        elif node.op_type == "Reshape" and len(target) == 3:
            merge, packed = round(target[2] ** 0.5), True
    return replace(
        options,
        special_tokens=special,
        merge=merge,
        merge_order="packed" if packed else "row_major",
        prefix_tokens=None if merge > 1 else options.prefix_tokens,
    )


def _score_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.metadata_props.get(_STAMP) == _SCORE]


def _score_ops(model: ir.Model) -> list[str]:
    """From the first mean on: before it, a converted encoder has its probabilities computed anew in float32,
    which its pruned graph, scored before it was converted, has not."""
    ops = [node.op_type for node in _score_nodes(model)]
    return ops[ops.index("ReduceMean") :] if "ReduceMean" in ops else ops


def _ints(value: ir.Value | None) -> list[int]:
    """The numbers of a constant; none of anything else."""
    constant = None if value is None else value.const_value
    return [] if constant is None else [int(number) for number in constant.numpy().reshape(-1)]


def _weight_files(graph: Path) -> list[Path]:
    from fopru_graph import load_graph
    from fopru_graph.weights import external_tensors

    names = {str(tensor.location) for tensor in external_tensors(load_graph(graph))}
    return [graph.parent / name for name in sorted(names)]


def _clear(folder: Path) -> None:
    """Second names that a killed process has left."""
    for place in folder.glob(f"{_OPEN}*"):
        if not place.name.endswith(f"-{os.getpid()}") and is_gone(place):
            shutil.rmtree(place, ignore_errors=True)


def _linked(files: Sequence[Path], folder: Path) -> bool:
    """Second names of files; False where the folder can have none, as it is on another disk."""
    try:
        for file in files:
            os.link(file.resolve(), folder / file.name)
    except OSError:
        return False
    return True


def _copied(files: Sequence[Path], folder: Path) -> Path:
    """Copies, made once; the folder."""
    for file in files:
        copy = folder / file.name
        if copy.exists():
            continue
        partial = copy.with_name(f".{copy.name}.{os.getpid()}")
        try:
            shutil.copyfile(file, partial)
            partial.replace(copy)
        finally:  # of a full disk, half a weight file would take the rest
            partial.unlink(missing_ok=True)
    return folder
