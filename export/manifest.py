"""`bundle.json` of a finished build, and the small files that travel with it."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from calib.bundle_writer import file_infos
from calib.precision import Precision, graph_file_of
from calib.precision.loss import PrecisionLoss
from export.onnx_from_torch import GraphStats
from export.options import BuildOptions
from export.plan import Plan
from export.torch_logits import StoredLogits
from fopru_graph import PruneReport
from runtime import contract
from runtime.manifest import (
    FORMAT_VERSION,
    ConstantInfo,
    DecoderInfo,
    GraphInfo,
    Manifest,
    ModelInfo,
    PruningInfo,
    SpecialTokens,
)
from runtime.version import __version__

__all__ = ["Exported", "copy_files", "manifest_of", "special_tokens", "write_constants"]

_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
# Everything of a checkpoint that is neither weights nor documentation.
_COPIED = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.jinja"),
)


@dataclass(frozen=True)
class Exported:
    """What needed the model, after it is gone."""

    decoder: DecoderInfo
    tokens: SpecialTokens
    graphs: dict[str, GraphStats]
    prune: PruneReport
    constants: dict[str, ConstantInfo]
    weight_bytes: int
    logits: StoredLogits | None = None
    loss: PrecisionLoss | None = None
    notes: tuple[str, ...] = ()


def special_tokens(plan: Plan, model: Any) -> SpecialTokens:
    """Ids with a meaning; what ends an answer: generation config, else model config, else tokenizer."""
    tokenizer = plan.processor.tokenizer
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = plan.config.text_config.eos_token_id
    if eos is None:
        eos = tokenizer.eos_token_id
    ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return SpecialTokens(
        plan.config.image_token_id, tuple(ids), tokenizer.pad_token_id, tokenizer.bos_token_id
    )


def write_constants(plan: Plan, model: Any, root: Path) -> dict[str, ConstantInfo]:
    """Vectors that the host needs, as `constants/<name>.f32`: little-endian float32, C order."""
    infos = {}
    for name, values in plan.checkpoint.family.constants(model).items():
        file = root / "constants" / f"{name}.f32"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(np.ascontiguousarray(values, dtype="<f4").tobytes())
        infos[name] = ConstantInfo(file.relative_to(root).as_posix(), values.shape)
    return infos


def copy_files(plan: Plan, root: Path) -> None:
    """Tokenizer, processor, template and configuration files of the checkpoint."""
    for pattern in _COPIED:
        for path in sorted(plan.checkpoint.path.glob(pattern)):
            shutil.copyfile(path, root / path.name)
    # As loaded, not as found: transformers corrects some tokenizers on loading, and some come without this
    # file.
    text = plan.processor.tokenizer.backend_tokenizer.to_str()
    (root / "tokenizer.json").write_text(text, encoding="utf-8")


def manifest_of(plan: Plan, exported: Exported, root: Path) -> Manifest:
    """The manifest of a bundle directory that has all its files; parity is still to come."""
    layout, options, decoder = plan.layout, plan.options, exported.decoder
    contracts = {
        **contract.vision_contracts(layout, decoder.hidden_size, grid_input=plan.grid_input),
        contract.EMBED_TOKENS: contract.embed_contract(decoder.hidden_size),
        **{graph: contract.decoder_contract(decoder, kind) for graph, kind in decoder.caches.items()},
    }
    created: dict[str, str | int] = {"fopru-edge": __version__}
    created |= {tool: metadata.version(tool) for tool in _TOOLS}
    created |= {"opset": options.opset, "command": _command(options)}
    checkpoint = plan.checkpoint
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by=created,
        model=ModelInfo(
            checkpoint.name, checkpoint.source, checkpoint.family.model_type, checkpoint.family.architecture
        ),
        prompt=plan.prompt.template,
        tokens=exported.tokens,
        preprocess=plan.preprocess,
        layout=layout,
        pruning=PruningInfo(
            strategy=options.strategy,
            aggregation=options.aggregation,
            layer=exported.prune.layer,
            score_path=exported.prune.score_path,
            gather=exported.prune.gather,
            position_ids=plan.position_ids,
            default_ratio=options.keep_ratio,
            default_tokens=options.tokens,
            row_scope=options.row_scope,
            newline=options.newline_policy,
        ),
        decoder=decoder,
        graphs={
            name: _graph_info(options.precision.of_graph(name), name, found)
            for name, found in contracts.items()
        },
        files=file_infos(root),
        constants=exported.constants,
    )


def _graph_info(precision: Precision, name: str, found: contract.GraphContract) -> GraphInfo:
    return GraphInfo(graph_file_of(name, precision), found.inputs, found.outputs, precision.name)


def _command(options: BuildOptions) -> str:
    """The command line that makes this bundle again."""
    words: list[object] = ["python", "-m", "export.build", "--model", options.model]
    words += ["--ratio", options.keep_ratio] if options.tokens is None else ["--tokens", options.tokens]
    words += ["--strategy", options.strategy, "--aggregation", options.aggregation, "--opset", options.opset]
    if options.row_scope != "tile":
        words += ["--row-scope", options.row_scope]
    for name, value in (
        ("--target", options.target),
        ("--layer", options.layer),
        ("--position-ids", options.position_ids),
        ("--newline", options.newline),
    ):
        words += [] if value is None else [name, value]
    if not options.precision.exact:
        words += ["--precision", options.precision.text()]
    for image in options.images:
        words += ["--image", image]
    if options.prompt is not None:
        words += ["--prompt", options.prompt]
    if options.output is not None:
        words += ["--output", options.output]
    return shlex.join(str(word) for word in words)
