"""A build's step between the exported graphs and the manifest: other precisions, and their loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calib.precision.bundle import GraphLogits, convert_bundle
from calib.precision.cases import TEXT, loss_cases
from calib.precision.convert import Converted
from calib.precision.emulate import TWIN_NOTE, emulated_decoder, runnable_copy
from calib.precision.loss import measure_loss
from calib.precision.names import HALVES, Precisions, data_file_of
from export.manifest import Exported
from export.onnx_from_torch import GraphStats
from export.steps import Steps
from export.torch_logits import StoredLogits
from runtime import contract
from runtime.golden import GOLDEN_TENSORS

__all__ = ["convert_exported", "stored_logits"]

_CACHE_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}


def stored_logits(model: Any, tokenizer: Any, root: Path) -> StoredLogits:
    """Logits of the float32 model on the golden request and a text, kept until the graphs are converted."""
    with np.load(root / GOLDEN_TENSORS) as golden:
        text = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        vocab = model.get_input_embeddings().num_embeddings
        cases = loss_cases(dict(golden), model.config.image_token_id, text, vocab)
    return StoredLogits(model, cases, root)


def convert_exported(
    exported: Exported, precisions: Precisions, root: Path, steps: Steps, *, tensorrt: bool = False
) -> Exported:
    """Convert the graphs of a bundle directory; what is fp32 stays as it is.

    `tensorrt`: how weights in 4 bits are written, see `convert_model`; the KV cache is float16 then.

    Raises:
        OptionError: a weight that float16 cannot hold.
    """
    if precisions.exact:
        return exported
    if precisions.decoder.weight_only:
        exported = _without_portable(exported, root)
    with steps.step(f"convert to {precisions.text()}"):
        made = convert_bundle(root, precisions, tuple(exported.graphs), tensorrt=tensorrt)
    graphs = {
        **exported.graphs,
        **{name: _stats(exported.graphs[name], found) for name, found in made.items()},
    }
    for name in made:
        data = root / data_file_of(name, precisions.of_graph(name))
        owner = exported.graphs[name].weight_bytes > 0
        graphs[name] = replace(
            graphs[name], weight_bytes=data.stat().st_size if owner and data.exists() else 0
        )
    decoder = exported.decoder
    kind = precisions.decoder
    if kind.name in HALVES or (tensorrt and kind.weight_only):
        decoder = replace(decoder, cache_dtype=_CACHE_DTYPES.get(kind.name, "float16"))
    notes = [*exported.notes, *(note for found in made.values() for note in found.notes)]
    loss = None
    if exported.logits is not None:
        with (
            steps.step("measure what the precision costs"),
            runnable_copy(root, precisions.names) as place,
        ):
            graph = GraphLogits(place, precisions, emulated_decoder(decoder))
            notes += [TWIN_NOTE] if place != root and tensorrt and kind.weight_only else []
            loss = measure_loss(exported.logits, graph, exported.logits.cases)
        notes += [loss.warning] if loss.warning else []
    return replace(
        exported,
        graphs=graphs,
        decoder=decoder,
        logits=None,
        loss=loss,
        notes=tuple(dict.fromkeys(notes)),
    )


def _without_portable(exported: Exported, root: Path) -> Exported:
    """Leave the portable decoder out where there is the other: it has standard operators, int4 does not."""
    caches = exported.decoder.caches
    if set(caches) != {contract.DECODER, contract.DECODER_PORTABLE}:
        return exported
    (root / contract.graph_file(contract.DECODER_PORTABLE)).unlink()
    rest = {name: kind for name, kind in caches.items() if name != contract.DECODER_PORTABLE}
    graphs = {name: stats for name, stats in exported.graphs.items() if name != contract.DECODER_PORTABLE}
    note = f"no {contract.DECODER_PORTABLE}: int8 and int4 weights need operators of ONNX Runtime"
    return replace(
        exported,
        graphs=graphs,
        decoder=replace(exported.decoder, caches=rest),
        notes=(*exported.notes, note),
    )


def _stats(before: GraphStats, found: Converted) -> GraphStats:
    return replace(before, nodes=found.nodes)
