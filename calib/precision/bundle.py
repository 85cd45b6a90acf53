"""The graphs of a bundle directory in the precisions asked for, and what that costs in logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.precision.convert import Converted, convert_graph
from calib.precision.loss import LossCase
from calib.precision.names import PARTS, Precisions, data_file_of, graph_file_of
from calib.precision.weight_file import WeightFile
from runtime import contract
from runtime.lazy import require

if TYPE_CHECKING:
    from runtime.manifest import DecoderInfo

__all__ = ["CaseFeeds", "GraphLogits", "convert_bundle"]


def convert_bundle(
    root: Path, precisions: Precisions, graphs: Sequence[str], *, tensorrt: bool = False
) -> dict[str, Converted]:
    """Replace float32 graphs by converted ones; weight files that no graph reads any more are removed.

    Args:
        root: bundle directory with `onnx/`.
        precisions: parts that are fp32 stay as they are.
        graphs: names of all graphs in it.
        tensorrt: how weights in 4 bits are written, see `convert_model`.

    Returns:
        The converted graphs, by name.

    Raises:
        OptionError: a weight that float16 cannot hold.
        GraphFileError: a graph cannot be written.
    """
    made: dict[str, Converted] = {}
    earlier: WeightFile | None = None
    for part in PARTS:
        precision = getattr(precisions, part)
        own = [graph for graph in graphs if precisions.part_of(graph) == part]
        if precision.name == "fp32" or not own:
            continue
        with WeightFile(root / data_file_of(own[0], precision), earlier) as earlier:
            for graph in own:
                target = root / graph_file_of(graph, precision)
                source = root / contract.graph_file(graph)
                made[graph] = convert_graph(source, target, precision, earlier, tensorrt=tensorrt)
    for graph in made:
        (root / contract.graph_file(graph)).unlink()
    _remove_unread(root / "onnx")
    return made


def _remove_unread(folder: Path) -> None:
    read = {Path(tensor.path).name for graph in folder.glob("*.onnx") for tensor in _external(graph)}
    for data in folder.glob("*.onnx_data"):
        if data.name not in read:
            data.unlink()


def _external(graph: Path) -> Iterable[ir.ExternalTensor]:
    tensors = (value.const_value for value in ir.load(graph).graph.initializers.values())
    return (tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor))


class CaseFeeds:
    """What a bundle's decoder reads of a case: its embedding graph through ONNX Runtime on the processor."""

    def __init__(
        self, root: Path, precisions: Precisions, decoder: DecoderInfo, threads: int | None = None
    ) -> None:
        """For the first graph that `decoder` names; `threads` is for who runs it."""
        self.threads = threads
        self._decoder, (self.graph, kind) = decoder, next(iter(decoder.caches.items()))
        self._contract = contract.decoder_contract(decoder, kind)
        self._embed = _session(root, contract.EMBED_TOKENS, precisions)

    def __call__(self, case: LossCase) -> dict[str, npt.NDArray[Any]]:
        """Inputs of the decoder by name, for all positions at once, with an empty cache."""
        rows, axes = len(case.ids), self._decoder.position_axes
        embeds = self._embed.run(None, {contract.INPUT_IDS: case.ids[None]})[0]
        if case.visual is not None:
            embeds[0, case.visual] = case.features
        places = np.tile(np.arange(rows), (axes, 1)) if case.positions is None else case.positions
        inputs = {
            contract.INPUTS_EMBEDS: embeds,
            contract.ATTENTION_MASK: np.ones((1, rows), np.int64),
            contract.POSITION_IDS: places if axes == 1 else places[:, None],
            contract.NUM_LOGITS_TO_KEEP: np.array(0, np.int64),
        }
        sizes = {"batch": 1, "past": 0, "capacity": rows}
        for spec in self._contract.inputs[len(inputs) :]:
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
            inputs[spec.name] = np.zeros(shape, spec.dtype)
        return inputs


class GraphLogits:
    """Logits of a bundle's embedding and decoder graphs through ONNX Runtime on the processor."""

    def __init__(self, root: Path, precisions: Precisions, decoder: DecoderInfo) -> None:
        """`decoder` names the graphs; the first one is run."""
        self._feeds = CaseFeeds(root, precisions, decoder)
        self._run = _session(root, self._feeds.graph, precisions)

    def __call__(self, case: LossCase) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = self._run.run([contract.LOGITS], self._feeds(case))[0][0]
        return result


def _session(root: Path, graph: str, precisions: Precisions) -> Any:
    runtime = require("onnxruntime", "onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    file = root / graph_file_of(graph, precisions.of_graph(graph))
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
