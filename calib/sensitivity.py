"""Which parts of an encoder do not stand 8 bits: each group of products is quantised alone, and measured.

Groups are what a user would name, a layer's attention or MLP. What a group costs alone says in which order
groups are tried in float32; how many of them have to be is found by measuring the whole.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.errors import OptionError, RunError, StoreError
from calib.journal import Journal
from calib.layers import places_of
from calib.precision.qdq import QdqFormat, add_qdq, products_of
from calib.precision.weight_file import WeightFile
from calib.precision.widened import fold_casts
from calib.ranges.collect import Keep
from runtime.backend import Array, Session
from runtime.backends.onnxruntime import OrtSession, message_of, session_options
from runtime.errors import BackendError
from runtime.lazy import require

__all__ = [
    "Group",
    "GroupLoss",
    "Quantisable",
    "Run",
    "groups_of",
    "keep_float",
    "measure",
    "weights_of",
]

Run: TypeAlias = Callable[[Session], Sequence[Array]]
"""Runs the same samples through a session: float32 features [..., rows, D], an array per sample."""

_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Group:
    """Products that are quantised together, or not: a name as `layers.3.mlp`, and names of their weights."""

    name: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class GroupLoss:
    """What quantising one group alone costs.

    Attributes:
        group: which.
        loss: 1 - mean cosine of the rows of features, each minus its mean, with those of float32; 1 for
            features that are not finite.
        max_abs_diff: largest difference of two features; None where it is not finite.
    """

    group: Group
    loss: float
    max_abs_diff: float | None


@dataclass(frozen=True)
class Quantisable:
    """A graph in float32, the format, `amax`: greatest magnitudes of its activations by tensor name, and the
    threads it is run with (None: all cores)."""

    graph: Path
    form: QdqFormat
    amax: Mapping[str, float]
    threads: int | None = None


def _silent(_done: int, _total: int) -> None:
    """No progress."""


def groups_of(model: ir.Model, form: QdqFormat) -> tuple[Group, ...]:
    """The products that a format quantises, by layer and kind, in the order of the graph.

    Names: `patches`, `layers.N.attention`, `layers.N.mlp`, `projector`; `layers.N` where nothing says which
    of the two; `product.N` in a graph without attention or addresses. A weight is in one group, the first
    that reads it.
    """
    wanted = {product.weight for product in products_of(model, form)}
    nodes = [node for node in model.graph if _is_product_with(node, wanted)]
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()
    for node, place in zip(nodes, places_of(model, nodes), strict=True):
        weight = _weight_of(node)
        if weight not in seen:
            groups.setdefault(place.name, []).append(weight)
            seen.add(weight)
    return tuple(Group(name, tuple(weights)) for name, weights in groups.items())


def weights_of(groups: Sequence[Group], names: Collection[str]) -> frozenset[str]:
    """The weights of some groups, for `--keep-float NAME,NAME`.

    Raises:
        OptionError: a name that no group has.
    """
    known = {group.name: group.weights for group in groups}
    for name in names:
        if name not in known:
            raise OptionError(
                f"keep-float names {name!r}, which the graph does not have: expected auto, none or some of "
                + ", ".join(known)
            )
    return frozenset(weight for name in names for weight in known[name])


def measure(
    source: Quantisable, run: Run, keep: Keep, progress: Callable[[int, int], None] = _silent
) -> tuple[GroupLoss, ...]:
    """Quantise each group alone and run the samples.

    Args:
        source: what is quantised. Groups none of whose activations has a range are left out.
        run: called once with the float32 graph and once per group.
        keep: a file of JSON lines, one per group, appended as they come; of another key it is begun anew.
        progress: called with groups done and in all.

    Returns:
        One per group, in the order of the graph; the same numbers however often a run was cut.

    Raises:
        RunError: the features of float32 are not finite, or the samples changed on the way.
        StoreError: the file is damaged.
        BackendError: ONNX Runtime cannot open a graph.
    """
    groups = _affected(source)
    found: dict[str, GroupLoss] = {}
    with Journal(keep.file, keep.key) as journal:
        found = {loss.group.name: loss for loss in map(_loss_from, journal.lines)}
        todo = [group for group in groups if found.get(group.name) is None]
        reference = _finite(run(_open(_loaded(source.graph), source))) if todo else ()
        for number, group in enumerate(todo, len(groups) - len(todo)):
            progress(number, len(groups))
            with tempfile.TemporaryDirectory() as folder:
                model = _loaded(source.graph)
                _quantise(model, source, group, Path(folder) / "weights")
            cosine, largest = _compared(reference, run(_open(model, source)))
            found[group.name] = GroupLoss(group, 1.0 - cosine, largest)
            journal.append(asdict(found[group.name]))
        progress(len(groups), len(groups))
    return tuple(found[group.name] for group in groups)


def keep_float(
    losses: Sequence[GroupLoss], evaluate: Callable[[frozenset[str]], float], least: float
) -> tuple[str, ...]:
    """The fewest groups to leave in float32, worst first, so that the whole is good enough.

    How many is found by doubling and then bisecting, about 2 log2 of the answer measurements; a fidelity that
    falls where more groups are in float32 may make it more than the fewest.

    Args:
        losses: of all groups.
        evaluate: fidelity of the whole with some weights left in float32; called once per set.
        least: what it must be, the fidelity's own unit.

    Returns:
        Names, worst first; empty where everything can be quantised.

    Raises:
        RunError: everything in float32 is not good enough either.
    """
    worst = [loss.group for loss in sorted(losses, key=lambda each: -each.loss)]  # stable: the graph's order

    def fidelity(count: int) -> float:
        return evaluate(frozenset(weight for group in worst[:count] for weight in group.weights))

    if fidelity(0) >= least:
        return ()
    low, high = 0, min(1, len(worst))
    while high < len(worst) and not fidelity(high) >= least:  # a NaN is not good enough
        low, high = high, min(2 * high, len(worst))
    if high == len(worst) and not (reached := fidelity(high)) >= least:  # also true for NaN
        raise RunError(
            f"with all {len(worst)} groups in float32 the fidelity is {reached:.4f}, below {least}: check "
            "the bundle with `python -m runtime.check`, or ask for less with --min-cosine"
        )
    while high - low > 1:
        middle = (low + high) // 2
        if fidelity(middle) >= least:
            high = middle
        else:
            low = middle
    return tuple(group.name for group in worst[:high])


def _weight_of(node: ir.Node) -> str:
    weight = node.inputs[1]
    assert weight is not None
    return str(weight.name)


def _is_product_with(node: ir.Node, weights: Collection[str]) -> bool:
    return node.op_type in ("MatMul", "Gemm", "Conv") and len(node.inputs) > 1 and _weight_of(node) in weights


def _affected(source: Quantisable) -> tuple[Group, ...]:
    model = _loaded(source.graph)
    ranged = {
        product.weight
        for product in products_of(model, source.form)
        if source.form.weight_only or product.activation in source.amax
    }
    return tuple(group for group in groups_of(model, source.form) if ranged & set(group.weights))


def _loaded(graph: Path) -> ir.Model:
    model = ir.load(graph)
    fold_casts(model)
    return model


def _quantise(model: ir.Model, source: Quantisable, group: Group, path: Path) -> None:
    """One group in place; its integers are in memory, everything else is where it was."""
    skip = {product.weight for product in products_of(model, source.form)} - set(group.weights)
    with WeightFile(path) as file:
        add_qdq(model, source.form, source.amax, file, skip=skip)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve() == path.resolve():
            value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
            tensor.release()


def _open(model: ir.Model, source: Quantisable) -> Session:
    """A session of a model in memory, whose weights stay in the files beside the graph it is of."""
    runtime, graph = require("onnxruntime", "onnxruntime"), source.graph
    options = session_options(runtime, source.threads, float8=source.form.name == "fp8")
    options.add_session_config_entry(_FOLDER, str(graph.resolve().parent))
    try:
        opened = runtime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime has a dozen classes with no common base
        raise BackendError(
            f"onnxruntime cannot load {graph} with one group quantised: {message_of(error)}"
        ) from error
    return OrtSession(opened, graph.stem)


def _finite(arrays: Sequence[Array]) -> tuple[Array, ...]:
    kept = tuple(np.array(array, np.float32) for array in arrays)
    if not kept or not all(np.isfinite(array).all() for array in kept):
        raise RunError(
            "the float32 graph gives no finite features for these samples: check the bundle with "
            "`python -m runtime.check`"
        )
    return kept


def _compared(reference: Sequence[Array], measured: Sequence[Array]) -> tuple[float, float | None]:
    """Mean cosine of centred rows, and the largest difference; 0 and None where something is not finite."""
    cosines: list[npt.NDArray[np.float64]] = []
    largest = 0.0
    for wanted, got in _pairs(reference, measured):
        if not np.isfinite(got).all():
            return 0.0, None
        cosines.append(_cosines(wanted, got))
        largest = max(largest, float(np.abs(wanted - got).max()))
    return float(np.concatenate(cosines).mean()), largest


def _pairs(
    reference: Sequence[Array], measured: Sequence[Array]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    if [array.shape for array in reference] != [np.shape(array) for array in measured]:
        raise RunError(
            "the quantised graph gives features of other shapes than float32: run the same samples, every "
            "token of them"
        )
    for wanted, got in zip(reference, measured, strict=True):
        width = wanted.shape[-1]
        yield wanted.astype(np.float64).reshape(-1, width), got.astype(np.float64).reshape(-1, width)


def _cosines(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    one, other = (rows - rows.mean(axis=1, keepdims=True) for rows in (one, other))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = (one == other).all(axis=1)
    products = np.einsum("rd,rd->r", one, other)
    found: npt.NDArray[np.float64] = products / np.where(lengths > 0, lengths, 1.0)
    return np.where(lengths > 0, found, same.astype(np.float64))


def _loss_from(line: Mapping[str, object]) -> GroupLoss:
    try:
        group = line["group"]
        assert isinstance(group, dict)
        return GroupLoss(
            Group(str(group["name"]), tuple(map(str, group["weights"]))),
            float(str(line["loss"])),
            None if line["max_abs_diff"] is None else float(str(line["max_abs_diff"])),
        )
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise StoreError(
            f"the losses of groups that were kept are damaged ({json.dumps(line)[:80]}): run with --fresh"
        ) from error
