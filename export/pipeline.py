"""The steps of a build: checkpoint → graphs → pruned graph → golden tensors → manifest → parity."""

from __future__ import annotations

import gc
import resource
import shutil
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from export.checkpoint import Checkpoint, load_config, load_model, load_processor, open_checkpoint
from export.families import VisionLayout
from export.golden import DEFAULT_PROMPT, NEW_TOKENS, open_images, reference_name, write_golden
from export.image_config import preprocess_from_processor
from export.onnx_from_torch import GraphStats, write_onnx_from_torch
from export.options import BuildOptions, kept_tokens
from export.oracle import PruningChoice
from export.prompt_template import PromptInfo, prompt_from_processor
from export.report import BuildReport, GraphRow
from export.steps import Steps
from export.writer import MANIFEST, BundleWriter, file_infos
from fopru_graph import PruneOptions, PruneReport, prune_file
from runtime import contract
from runtime.bundle import load_bundle
from runtime.check import check_bundle
from runtime.golden import Golden
from runtime.manifest import (
    FORMAT_VERSION,
    DecoderInfo,
    GraphInfo,
    Manifest,
    ModelInfo,
    Preprocess,
    PruningInfo,
    SpecialTokens,
    VisionInfo,
)
from runtime.version import __version__

__all__ = ["run_build"]

_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
# Everything of a checkpoint that is neither weights nor documentation.
_COPIED = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_NOT_COPIED = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "tokenizer.json")


@dataclass(frozen=True)
class Plan:
    """Everything known before weights are loaded."""

    options: BuildOptions
    checkpoint: Checkpoint
    config: Any
    processor: Any
    layout: VisionLayout
    preprocess: Preprocess
    prompt: PromptInfo

    @property
    def keep(self) -> int:
        """K of the golden tensors and of the default request."""
        return kept_tokens(self.layout, self.options.strategy, self.options.keep_ratio, self.options.tokens)


@dataclass(frozen=True)
class Exported:
    """What needed the model, after it is gone."""

    decoder: DecoderInfo
    tokens: SpecialTokens
    graphs: dict[str, GraphStats]
    prune: PruneReport
    weight_bytes: int


def run_build(options: BuildOptions, steps: Steps) -> BuildReport:
    """Make a bundle.

    Raises:
        ExportError: options, checkpoint or output that cannot be used.
        GraphError: the encoder graph cannot be pruned.
        FopruError: the finished bundle cannot be run.
    """
    with steps.step("read the checkpoint"):
        checkpoint = open_checkpoint(options.model)
        writer = BundleWriter(options.output or Path("bundles") / checkpoint.name)
        plan = _plan(options, checkpoint)
        images = open_images(options.images)
    with writer:
        exported = _export(plan, images, writer.path, steps)
        with steps.step("write the manifest"):
            _copy_files(plan, writer.path)
            manifest = _manifest(plan, exported, writer.path)
            (writer.path / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        with steps.step("compare the bundle with PyTorch"):
            # The files were written a moment ago: their hashes need no second look.
            parity = check_bundle(load_bundle(writer.path, verify=False)).to_dict()
            (writer.path / MANIFEST).write_text(replace(manifest, parity=parity).to_json(), encoding="utf-8")
        rows = tuple(_graph_row(writer.path, name, exported.graphs[name]) for name in manifest.graphs)
        writer.commit()
    return BuildReport(
        bundle=writer.target,
        model=checkpoint.name,
        family=checkpoint.family.model_type,
        tokens=plan.layout.tokens,
        kept=plan.keep,
        layer=exported.prune.layer,
        strategy=options.strategy,
        aggregation=options.aggregation,
        graphs=rows,
        prune=exported.prune.to_dict(),
        parity=parity,
        steps=steps.timings,
        peak_rss_bytes=_peak_rss(),
        weight_bytes=exported.weight_bytes,
        notes=(plan.prompt.note,) if plan.prompt.note else (),
    )


def _plan(options: BuildOptions, checkpoint: Checkpoint) -> Plan:
    config = load_config(checkpoint)
    layout = checkpoint.family.layout(config)
    options.check(layout)
    processor = load_processor(checkpoint)
    return Plan(
        options=options,
        checkpoint=checkpoint,
        config=config,
        processor=processor,
        layout=layout,
        preprocess=preprocess_from_processor(processor.image_processor, layout.image_size),
        prompt=prompt_from_processor(processor, config.image_token_id, layout.prefix_tokens + layout.tokens),
    )


def _export(plan: Plan, images: list[Any], root: Path, steps: Steps) -> Exported:
    """Everything that needs the model; it is freed on return."""
    family, options = plan.checkpoint.family, plan.options
    with steps.step("load the weights"):
        model = load_model(plan.checkpoint)
        decoder = family.decoder_info(model)
    (root / contract.graph_file(contract.VISION_ENCODER)).parent.mkdir()
    graphs: dict[str, GraphStats] = {}
    for graph in family.subgraphs(model, plan.layout, decoder):
        with steps.step(f"export {graph.name}"):
            target = root / contract.graph_file(graph.name)
            graphs[graph.name] = write_onnx_from_torch(
                graph.module, graph.args, graph.contract, target, options.opset
            )
            gc.collect()  # traced programs are full of cycles and hold the weights
    with steps.step(f"prune {contract.VISION_ENCODER}"):
        report = prune_file(
            root / contract.graph_file(contract.VISION_ENCODER),
            root / contract.graph_file(contract.VISION_ENCODER_FOPRU),
            PruneOptions(
                strategy=options.strategy,
                aggregation=options.aggregation,
                layer=options.layer,
                prefix_tokens=plan.layout.prefix_tokens,
                special_tokens=plan.layout.special_tokens,
                grid=plan.layout.grid,
            ),
        )
        added = report.nodes_added - report.nodes_removed
        plain = graphs[contract.VISION_ENCODER]
        graphs[contract.VISION_ENCODER_FOPRU] = replace(plain, nodes=plain.nodes + added, weight_bytes=0)
    with steps.step("make golden tensors with PyTorch"):
        _make_golden(plan, model, report.layer, images, root)
    return Exported(decoder, _special_tokens(plan, model), graphs, report, _weight_bytes(model))


def _make_golden(plan: Plan, model: Any, layer: int, images: list[Any], root: Path) -> None:
    options = plan.options
    prompt = options.prompt if options.prompt is not None else DEFAULT_PROMPT
    choice = PruningChoice(plan.keep, layer, options.strategy, options.aggregation)
    tensors = plan.checkpoint.family.oracle(model, plan.processor).run(images, prompt, choice, NEW_TOKENS)
    names = tuple(f"golden/image_{number}.png" for number in range(len(images)))
    record = Golden(
        prompt, names, plan.keep, options.keep_ratio, options.strategy, NEW_TOKENS, reference_name()
    )
    write_golden(root, images, record, tensors)


def _special_tokens(plan: Plan, model: Any) -> SpecialTokens:
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


def _weight_bytes(model: Any) -> int:
    return sum(value.numel() * value.element_size() for value in model.parameters())


def _copy_files(plan: Plan, root: Path) -> None:
    for pattern in _COPIED:
        for path in sorted(plan.checkpoint.path.glob(pattern)):
            if path.name not in _NOT_COPIED:
                shutil.copyfile(path, root / path.name)
    # As loaded, not as found: transformers corrects some tokenizers on loading, and some come without this
    # file.
    text = plan.processor.tokenizer.backend_tokenizer.to_str()
    (root / "tokenizer.json").write_text(text, encoding="utf-8")


def _manifest(plan: Plan, exported: Exported, root: Path) -> Manifest:
    layout, options, decoder = plan.layout, plan.options, exported.decoder
    rows = layout.prefix_tokens + layout.tokens
    contracts = contract.static_contracts(layout.image_size, rows, decoder.hidden_size)
    contracts[contract.DECODER] = contract.decoder_contract(
        decoder.layers, decoder.kv_heads, decoder.head_dim, decoder.vocab_size, decoder.hidden_size
    )
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
        vision=VisionInfo(layout.image_size, layout.grid, layout.tokens, layout.prefix_tokens),
        pruning=PruningInfo(
            strategy=options.strategy,
            aggregation=options.aggregation,
            layer=exported.prune.layer,
            score_path=exported.prune.score_path,
            gather=exported.prune.gather,
            position_ids="renumber",
            default_ratio=options.keep_ratio,
            default_tokens=options.tokens,
        ),
        decoder=decoder,
        graphs={
            name: GraphInfo(contract.graph_file(name), found.inputs, found.outputs)
            for name, found in contracts.items()
        },
        files=file_infos(root),
    )


def _command(options: BuildOptions) -> str:
    """The command line that makes this bundle again."""
    words = ["python -m export.build", f"--model {options.model}"]
    words.append(
        f"--tokens {options.tokens}" if options.tokens is not None else f"--ratio {options.keep_ratio}"
    )
    words += [
        f"--strategy {options.strategy}",
        f"--aggregation {options.aggregation}",
        f"--opset {options.opset}",
    ]
    if options.layer is not None:
        words.append(f"--layer {options.layer}")
    return " ".join(words)


def _graph_row(root: Path, name: str, stats: GraphStats) -> GraphRow:
    file = contract.graph_file(name)
    return GraphRow(name, file, stats.nodes, stats.opset, (root / file).stat().st_size, stats.weight_bytes)


def _peak_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB except on macOS
