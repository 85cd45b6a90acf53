"""The steps of a build: checkpoint → graphs → pruned graph → golden tensors → manifest → parity."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

from calib.bundle_writer import BundleWriter
from calib.precision.emulate import runnable_copy
from export.checkpoint import load_model, open_checkpoint, weight_files
from export.converted import convert_exported, stored_logits
from export.families import Subgraph
from export.golden import NEW_TOKENS, SAMPLE_IMAGE, reference_name, write_golden
from export.manifest import Exported, copy_files, manifest_of, special_tokens, write_constants
from export.memory import check_memory
from export.onnx_from_torch import GraphStats, write_lowered, write_onnx_from_torch
from export.options import BuildOptions
from export.oracle import Oracle, PruningChoice
from export.plan import Plan, plan_build
from export.report import BuildReport, GraphRow
from export.steps import Steps
from export.stored_weights import weight_count
from export.targets import decoders_of, is_tensorrt, target_notes, verdicts_of
from fopru_graph import PruneOptions, prune_file
from runtime import contract
from runtime.bundle import MANIFEST_FILE, load_bundle
from runtime.check import check_bundle
from runtime.costs import components_of, costs_of
from runtime.golden import Golden
from runtime.manifest import Manifest
from runtime.parity import ParityReport
from runtime.result import peak_rss_bytes

__all__ = ["run_build", "write_subgraph"]


def run_build(options: BuildOptions, steps: Steps) -> BuildReport:
    """Make a bundle.

    Raises:
        ExportError: options, checkpoint or output that cannot be used, or too little memory.
        GraphError: the encoder graph cannot be pruned.
        FopruError: the finished bundle cannot be run.
    """
    with steps.step("read the checkpoint"):
        checkpoint = open_checkpoint(options.model)
        writer = BundleWriter(options.output or Path("bundles") / checkpoint.name)
        plan = plan_build(options, checkpoint)
        check_memory(weight_files(checkpoint.path), options.precision)
    with writer:
        exported = _export(plan, writer.path, steps)
        tensorrt = is_tensorrt(options.target)
        exported = convert_exported(exported, options.precision, writer.path, steps, tensorrt=tensorrt)
        with steps.step("write the manifest"):
            copy_files(plan, writer.path)
            manifest = manifest_of(plan, exported, writer.path)
            (writer.path / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        with (
            steps.step("compare the bundle with PyTorch"),
            runnable_copy(writer.path, options.precision.names) as place,
        ):
            # The files were written a moment ago: their hashes need no second look.
            report = check_bundle(load_bundle(place, verify=False))
            parity = {**report.to_dict(), **_costs(exported, manifest, report)}
            (writer.path / MANIFEST_FILE).write_text(
                replace(manifest, parity=parity).to_json(), encoding="utf-8"
            )
        with steps.step("ask the lint of every target"):
            targets = verdicts_of({name: writer.path / info.file for name, info in manifest.graphs.items()})
        rows = tuple(
            _graph_row(writer.path, name, info.file, exported.graphs[name])
            for name, info in manifest.graphs.items()
        )
        writer.commit()
    return BuildReport(
        bundle=writer.target,
        model=checkpoint.name,
        family=checkpoint.family.model_type,
        sizes=tuple((image.width, image.height) for image in plan.images),
        tokens=tuple(image.placeholders for image in plan.image_plans),
        kept=plan.placeholders,
        layer=exported.prune.layer,
        strategy=options.strategy,
        aggregation=options.aggregation,
        graphs=rows,
        prune=exported.prune.to_dict(),
        parity=parity,
        steps=steps.timings,
        peak_rss_bytes=peak_rss_bytes(),
        weight_bytes=exported.weight_bytes,
        targets=targets,
        notes=(
            *([plan.prompt.note] if plan.prompt.note else []),
            *plan.notes,
            *exported.prune.notes,
            *exported.notes,
            *target_notes(options.target, options.precision),
        ),
        images=options.images or (SAMPLE_IMAGE,),
        prompt=plan.question,
        target=options.target,
    )


def _export(plan: Plan, root: Path, steps: Steps) -> Exported:
    """Everything that needs the model; it is freed on return."""
    family, options = plan.checkpoint.family, plan.options
    with steps.step("load the weights"):
        model = load_model(plan.checkpoint)
        decoder = family.decoder_info(model)
        decoder = replace(decoder, caches=decoders_of(options.target, decoder.caches))
    (root / contract.graph_file(contract.VISION_ENCODER)).parent.mkdir()
    graphs: dict[str, GraphStats] = {}
    for graph in family.subgraphs(model, plan.layout, decoder):
        with steps.step(f"export {graph.name}"):
            narrow = graph.name == contract.DECODER and options.precision.decoder.name != "fp32"
            graphs |= write_subgraph(graph, root, options.opset, narrow=narrow)
            gc.collect()  # traced programs are full of cycles and hold the weights
    with steps.step(f"prune {contract.VISION_ENCODER}"):
        report = prune_file(
            root / contract.graph_file(contract.VISION_ENCODER),
            root / contract.graph_file(contract.VISION_ENCODER_FOPRU),
            _prune_options(plan),
        )
        added = report.nodes_added - report.nodes_removed
        plain = graphs[contract.VISION_ENCODER]
        graphs[contract.VISION_ENCODER_FOPRU] = replace(plain, nodes=plain.nodes + added, weight_bytes=0)
    with steps.step("make golden tensors with PyTorch"):
        _make_golden(plan, model, report.layer, root)
    logits = None
    if not options.precision.exact_text:
        with steps.step("run PyTorch on the text of the loss"):
            logits = stored_logits(model, plan.processor.tokenizer, root)
    return Exported(
        decoder=decoder,
        tokens=special_tokens(plan, model),
        graphs=graphs,
        prune=report,
        constants=write_constants(plan, model, root),
        weight_bytes=4 * weight_count(model),
        logits=logits,
    )


def write_subgraph(graph: Subgraph, root: Path, opset: int, *, narrow: bool = False) -> dict[str, GraphStats]:
    """Trace one subgraph and write every graph that is made of it into the bundle directory `root`; see
    `write_onnx_from_torch`."""
    target = root / contract.graph_file(graph.name)
    traced = write_onnx_from_torch(graph, target, opset, narrow=narrow)
    if not graph.lowered:
        return {graph.name: traced}
    source = target.rename(target.with_suffix(".traced"))
    graphs = {
        name: write_lowered(source, root / contract.graph_file(name), lower)
        for name, lower in graph.lowered.items()
    }
    source.unlink()
    owner = next(iter(graphs))
    return {**graphs, owner: replace(graphs[owner], weight_bytes=traced.weight_bytes)}


def _prune_options(plan: Plan) -> PruneOptions:
    options, encoder, layout = plan.options, plan.encoder, plan.layout
    return PruneOptions(
        strategy=options.strategy,
        aggregation=options.aggregation,
        layer=encoder.layer if options.layer is None else options.layer,
        prefix_tokens=layout.prefix_tokens,
        special_tokens=encoder.special_tokens,
        grid="input" if plan.grid_input else layout.unit_grid,
        merge=encoder.merge,
        merge_order=encoder.merge_order,
        token_order=encoder.token_order,
        mask=layout.masked,
    )


def _make_golden(plan: Plan, model: Any, layer: int, root: Path) -> None:
    options = plan.options
    choice = PruningChoice(
        layer=layer,
        ratio=options.keep_ratio,
        tokens=options.tokens,
        strategy=options.strategy,
        aggregation=options.aggregation,
        row_scope=options.row_scope,
        newline=options.newline_policy,
        position_ids=plan.position_ids,
    )
    reference = plan.checkpoint.family.reference(model, plan.processor)
    oracle = Oracle(reference, model, plan.processor)
    tensors = oracle.run(list(plan.images), plan.question, choice, NEW_TOKENS)
    record = Golden(
        prompt=plan.question,
        images=tuple(f"golden/image_{number}.png" for number in range(len(plan.images))),
        ratio=options.keep_ratio,
        tokens=options.tokens,
        strategy=options.strategy,
        new_tokens=NEW_TOKENS,
        reference=reference_name(),
    )
    write_golden(root, plan.images, record, tensors)


def _costs(exported: Exported, manifest: Manifest, report: ParityReport) -> dict[str, Any]:
    """What precisions cost, beside the stages; nothing for float32."""
    precisions = {name: info.precision for name, info in manifest.graphs.items()}
    costs = costs_of(report, precisions)
    loss = None if exported.loss is None else exported.loss.to_dict()
    components = [component.to_dict() for component in components_of(report, precisions, loss)]
    return {
        **({} if loss is None else {"loss": loss}),
        **({"costs": costs} if costs else {}),
        **({"components": components} if components else {}),
    }


def _graph_row(root: Path, name: str, file: str, stats: GraphStats) -> GraphRow:
    return GraphRow(name, file, stats.nodes, stats.opset, (root / file).stat().st_size, stats.weight_bytes)
