"""Targets of a build: what a target refuses, what it leaves out, and what the lint of every graph says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import calib.errors
from calib.precision import FLOAT32, parse_precision
from export import build as build_module
from export import options as options_module
from export import pipeline
from export.build import build, main
from export.errors import OptionError
from export.options import BuildOptions, precision_for
from export.targets import TargetVerdict, check_target, decoders_of, target_notes, verdicts_of
from fopru_graph.lint import TARGETS, lint
from runtime import contract, load_bundle
from tests.conftest import Maker, ToyBuild
from tests.test_fopru_graph_lint import graph, topk

CACHES = {contract.DECODER: contract.SHARED, contract.DECODER_PORTABLE: contract.APPEND}
TENSORRT = [name for name, target in TARGETS.items() if target.family != "ort"]


@dataclass(frozen=True)
class Made:
    code: int
    bundle: Path
    report: dict[str, Any]
    stderr: str


@pytest.fixture(scope="module")
def orin_build(toy_checkpoint: Maker, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The toy CLIP + Llama checkpoint by the command line, for JetPack 6."""
    target = tmp_path_factory.mktemp("targets") / "toy"
    command = ["--model", str(toy_checkpoint("clip-llama")), "--output", str(target), "--json"]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([*command, "--target", "jetpack6"])
    return Made(code, target, json.loads(out.getvalue()), err.getvalue())


def test_the_names_are_those_of_the_lint() -> None:
    assert tuple(TARGETS) == options_module.TARGETS


def test_a_portable_build_is_taken_by_every_target(toy_build: ToyBuild) -> None:
    found = toy_build.report["targets"]
    assert [verdict["target"] for verdict in found] == list(TARGETS)
    assert {verdict["errors"] for verdict in found} == {0}
    assert (toy_build.report["target"], toy_build.report["failures"]) == (None, [])


def test_a_target_decides_precision_and_graphs(orin_build: Made) -> None:
    assert orin_build.code == 0, orin_build.stderr
    built = load_bundle(orin_build.bundle).manifest
    assert {info.precision for info in built.graphs.values()} == {"fp16"}
    assert set(built.decoder.caches) == {contract.DECODER_PORTABLE}
    assert contract.DECODER not in built.graphs
    assert built.decoder.cache_dtype == "float16"
    cache = [spec for spec in built.graphs[contract.DECODER_PORTABLE].inputs if "past" in spec.name]
    assert {spec.dtype for spec in cache} == {"float16"}
    graphs = (
        *built.decoder.caches,
        contract.EMBED_TOKENS,
        contract.VISION_ENCODER,
        contract.VISION_ENCODER_FOPRU,
    )
    found = {path.name for path in (orin_build.bundle / "onnx").glob("*.onnx")}
    assert found == {f"{name}_fp16.onnx" for name in graphs}
    assert orin_build.report["target"] == "jetpack6"


def test_the_parity_of_a_target_build_has_components(orin_build: Made) -> None:
    components = orin_build.report["parity"]["components"]
    vision, selection, pruned, decoder = components
    assert [each["name"] for each in components] == ["vision", "selection", "pruned vision", "decoder"]
    assert (selection["chosen"], selection["cosine"]) == (1.0, None)
    assert pruned["cosine"] > 0.99999
    # Far above the floors: 11 bits on four layers.
    assert vision["cosine"] > 0.99999
    assert decoder["cosine"] > 0.9999
    assert decoder["top1"] > 0.97
    stored = load_bundle(orin_build.bundle).manifest.parity
    assert stored is not None
    assert stored["components"] == orin_build.report["parity"]["components"]


def test_one_file_for_every_tensorrt(orin_build: Made) -> None:
    verdicts = {verdict["target"]: verdict for verdict in orin_build.report["targets"]}
    for name in TENSORRT:
        assert (verdicts[name]["errors"], verdicts[name]["warnings"]) == (0, 0)


def test_a_refused_graph_fails_the_build(
    toy_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is there, and the sentence names graph and node."""
    write = pipeline.convert_exported

    def with_a_bad_node(*arguments: Any, **options: Any) -> Any:
        exported = write(*arguments, **options)
        path = arguments[2] / contract.graph_file(contract.EMBED_TOKENS)
        model = ir.load(path)
        made = ir.node("BitwiseNot", [model.graph.inputs[0]], name="odd")
        undone = ir.node("BitwiseNot", [made.outputs[0]], name="even")
        gather = next(iter(model.graph))
        model.graph.insert_before(gather, [made, undone])
        gather.replace_input_with(1, undone.outputs[0])
        ir.save(model, path)
        return exported

    monkeypatch.setattr(pipeline, "convert_exported", with_a_bad_node)
    command = ["--model", str(toy_checkpoint("clip-llama")), "--output", str(tmp_path / "b")]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        code = main([*command, "--target", "tensorrt11", "--precision", "fp32"])
    assert code == 1
    assert (
        "the bundle was written, but target tensorrt11 refuses embed_tokens, BitwiseNot 'odd' and 1 more: "
        "the parser's table marks it as not supported" in " ".join(err.getvalue().split())
    )
    assert load_bundle(tmp_path / "b").manifest.graphs


def test_a_component_below_its_floor_fails_the_build(
    toy_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime import costs

    monkeypatch.setattr(costs, "FLOORS", {"fp16": costs.Floor(1.0, 0.5, 0.0)})
    options = BuildOptions(
        str(toy_checkpoint("clip-llama")), tmp_path / "b", precision=parse_precision("vision=fp16")
    )
    report = build(options)
    assert not report.ok
    failure, of_pruned = report.failures
    assert of_pruned.startswith("pruned vision in fp16")
    assert failure.startswith("vision in fp16 has the cosine 1.00000 to float32, at least 1 is expected")


def keep_the_least(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "TopK").attributes["largest"] = ir.AttrInt64(
        "largest", 0
    )


def negate_features(model: ir.Model) -> None:
    value = model.graph.outputs[0]
    assert value.name == contract.IMAGE_FEATURES
    value.name = "positive"
    node = ir.node("Neg", [value])
    made = node.outputs[0]
    made.name, made.type, made.shape = contract.IMAGE_FEATURES, value.type, value.shape
    model.graph.append(node)
    model.graph.outputs[0] = made


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (keep_the_least, "selection in fp16 keeps tokens worth 0.0"),
        (negate_features, "pruned vision in fp16 has the cosine -"),
    ],
)
def test_a_broken_pruned_encoder_fails_the_build(
    change: Callable[[ir.Model], None],
    failure: str,
    toy_checkpoint: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = pipeline.convert_exported

    def broken(*arguments: Any, **options: Any) -> Any:
        exported = write(*arguments, **options)
        (path,) = (arguments[2] / "onnx").glob("vision_encoder_fopru*.onnx")
        model = ir.load(path)
        change(model)
        ir.save(model, path)
        return exported

    monkeypatch.setattr(pipeline, "convert_exported", broken)
    options = BuildOptions(
        str(toy_checkpoint("clip-llama")), tmp_path / "b", precision=parse_precision("vision=fp16")
    )
    (found,) = build(options).failures
    assert found.startswith(failure)


@pytest.mark.parametrize(
    ("target", "text", "expected"),
    [
        (None, None, "fp32"),
        ("ort", None, "fp32"),
        ("jetpack7", None, "fp16"),
        ("jetpack6", "fp32", "fp32"),
        ("jetpack6", "vision=fp16", "fp16"),
        (None, "vision=fp16", "vision=fp16"),
    ],
)
def test_the_precision_of_a_target(target: str | None, text: str | None, expected: str) -> None:
    assert precision_for(target, text) == parse_precision(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "xavier"}, "target is 'xavier', expected one of jetpack6, jetpack7, tensorrt10"),
        (
            {"target": "jetpack6", "opset": 23},
            "opset is 23, but target jetpack6 takes 9 to 20 .*leave --opset",
        ),
        (
            {"target": "jetpack7", "opset": 23},
            "opset is 23, which writes norms as RMSNormalization, .* TensorRT 10.15 on: leave --opset",
        ),
        (
            {"target": "jetpack6", "precision": parse_precision("decoder=int4")},
            r"precision of embed is int4, but target jetpack6 \(JetPack 6.1 .*\) has fp32, fp16",
        ),
        (
            {"target": "ort", "precision": parse_precision("bf16")},
            "precision of vision is bf16, but target ort .* has fp32, fp16, int8, int4: .* out for fp32",
        ),
        ({"precision": parse_precision("vision=bf16")}, "precision is bf16, which ONNX Runtime does not"),
        (
            {"target": "tensorrt-rtx", "opset": 23, "precision": parse_precision("fp16,vision=fp32")},
            "opset is 23 and precision of vision is fp32, but target tensorrt-rtx .* builds no float32 "
            "Attention: leave --opset out for 20, or give --precision vision=fp16 or vision=bf16",
        ),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BuildOptions("m", **options)


def test_a_precision_that_no_chip_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_target("tensorrt11", 23, FLOAT32)
    check_target("jetpack6", 20, parse_precision("bf16"))
    from fopru_graph.lint import targets

    monkeypatch.setattr(targets, "PRECISION_CHIPS", {**targets.PRECISION_CHIPS, "bf16": 200})
    with pytest.raises(
        OptionError, match=r"precision of vision is bf16, but target jetpack6 .* has fp32, fp16: "
    ):
        check_target("jetpack6", 20, parse_precision("bf16"))


def test_opset_23_is_for_half_precision_with_tensorrt_for_rtx() -> None:
    for precision in ("fp16", "bf16", "vision=fp16"):  # the decoder is written without Attention
        check_target("tensorrt-rtx", 23, parse_precision(precision))
    check_target("tensorrt-rtx", 20, FLOAT32)
    check_target("tensorrt11", 23, FLOAT32)  # not seen there: a warning of the lint


@pytest.mark.parametrize("target", [None, "ort", "jetpack6", "tensorrt-rtx"])
def test_an_empty_precision_is_none(target: str | None) -> None:
    with pytest.raises(
        calib.errors.OptionError, match=r"precision is '', expected .*fp32, fp16, bf16, int8, int4"
    ):
        precision_for(target, "")


def test_decoders_of_targets() -> None:
    assert decoders_of(None, CACHES) == decoders_of("ort", CACHES) == CACHES
    for name in TENSORRT:
        assert decoders_of(name, CACHES) == {contract.DECODER_PORTABLE: contract.APPEND}


def test_chips_that_lack_a_precision_are_named() -> None:
    assert target_notes(None, FLOAT32) == target_notes("jetpack6", parse_precision("bf16")) == ()
    assert target_notes("tensorrt10", parse_precision("bf16")) == ("bf16 needs SM80 or newer: not for SM75",)


@pytest.mark.parametrize(
    ("errors", "warnings", "text"),
    [(0, 0, "x ok"), (1, 0, "x 1 error"), (2, 1, "x 2 errors and 1 warning"), (0, 3, "x 3 warnings")],
)
def test_a_verdict_in_words(errors: int, warnings: int, text: str) -> None:
    assert str(TargetVerdict("x", errors, warnings, ())) == text


def saved(folder: Path, **models: ir.Model) -> dict[str, Path]:
    paths = {name: folder / f"{name}.onnx" for name in models}
    for name, model in models.items():
        ir.save(model, paths[name])
    return paths


def test_findings_are_those_of_the_lint_with_graph_and_fix(tmp_path: Path) -> None:
    paths = saved(tmp_path, vision=topk(4000, "int64[1] k = {3900}"))
    for verdict in verdicts_of(paths):
        report = lint(topk(4000, "int64[1] k = {3900}"), verdict.target)
        assert (verdict.errors, verdict.warnings) == (len(report.of("error")), len(report.of("warning")))
        grave = (*report.of("error"), *report.of("warning"))
        assert set(verdict.findings) == {f"vision: {each.message}: {each.fix}" for each in grave}
    by_name = {verdict.target: verdict for verdict in verdicts_of(paths)}
    assert by_name["jetpack6"].errors == 1
    assert (
        by_name["jetpack6"].refused[0].startswith("vision, TopK 'TopK_0': K is 3900, at most 3839 is taken")
    )


def test_a_finding_of_many_nodes_is_said_once(tmp_path: Path) -> None:
    model = graph("z = NonZero(x) w = NonZero(x) y = Identity(x)", "float[2,9] x", "float[2,9] y")
    (jetpack,) = [each for each in verdicts_of(saved(tmp_path, g=model)) if each.target == "jetpack6"]
    assert jetpack.errors + jetpack.warnings >= 2
    assert len(jetpack.findings) == len(set(jetpack.findings)) < jetpack.errors + jetpack.warnings


def test_every_graph_is_asked_about_but_a_decoder_that_is_not_for_the_target(tmp_path: Path) -> None:
    foreign, clean = graph("y = com.microsoft.Gelu(x)"), graph("y = Relu(x)")
    alone = {each.target: each for each in verdicts_of(saved(tmp_path, **{contract.DECODER: foreign}))}
    assert alone["jetpack6"].errors == 1  # there is no other decoder
    both = saved(tmp_path, **{contract.DECODER: foreign, contract.DECODER_PORTABLE: clean})
    assert {each.errors for each in verdicts_of(both)} == {0}
    other = saved(tmp_path, **{contract.EMBED_TOKENS: foreign, contract.DECODER_PORTABLE: clean})
    found = {each.target: each for each in verdicts_of(other)}
    assert (found["jetpack6"].errors, found["ort"].errors) == (1, 0)
    assert (
        found["jetpack6"].refused[0].startswith("embed_tokens, Gelu 'Gelu_0': 'com.microsoft' is no domain")
    )


def test_the_help_names_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        build_module.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "tensorrt-rtx" in shown
    assert "a component is less exact than the floor of its precision" in shown


def test_a_bfloat16_bundle(toy_checkpoint: Maker, tmp_path: Path) -> None:
    """Built and compared through its twin in float32; the bundle itself says bfloat16."""
    options = BuildOptions(
        str(toy_checkpoint("clip-llama")),
        tmp_path / "b",
        target="tensorrt-rtx",
        precision=parse_precision("bf16"),
    )
    report = build(options)
    assert report.failures == ()
    built = load_bundle(tmp_path / "b").manifest
    assert {info.precision for info in built.graphs.values()} == {"bf16"}
    assert built.decoder.cache_dtype == "bfloat16"
    vision, decoder = report.parity["components"][0], report.parity["components"][-1]
    assert 0.999 < vision["cosine"] < 1 - 1e-7  # rounded to 8 bits, and not more than that
    assert 0.999 < decoder["cosine"] < 1 - 1e-7
    assert report.notes[-1] == "bf16 needs SM80 or newer: not for SM75"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
