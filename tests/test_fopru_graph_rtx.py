"""Parsing and building with TensorRT for RTX: shapes as ONNX Runtime has them, refusals with their node.

What needs the package is skipped where it is not installed.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fopru_graph import OptionError, PruneOptions, load_graph, prune
from fopru_graph.lint import rtx
from fopru_graph.lint.graph import view_of
from fopru_graph.lint.profiles import POINTS, Profile, derive_profiles, read_on_host
from fopru_graph.lint.rtx import BuildReport, build_check
from fopru_graph.shapes import dims
from tests.test_fopru_graph_lint import CASES, Case, attention, graph, topk
from tests.toy_encoders import Toy, export, text_encoder

INSTALLED = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(
    not INSTALLED, reason="TensorRT for RTX is not installed: pip install tensorrt-rtx"
)


def saved(model: ir.Model, folder: Path) -> Path:
    path = folder / "model.onnx"
    ir.save(model, path)
    return path


def pruned(folder: Path, options: PruneOptions | None = None) -> Path:
    model = load_graph(export(Toy()))
    prune(model, options)
    path = folder / "pruned.onnx"
    ir.save(model, path, external_data="pruned.onnx.data")
    return path


def rules(report: BuildReport) -> list[str]:
    return [finding.rule for finding in report.findings]


@needs_rtx
def test_shapes_are_those_of_onnx_runtime_and_an_engine_builds(tmp_path: Path) -> None:
    path = pruned(tmp_path)
    report = build_check(path, capabilities=("SM86",))
    assert report.findings == ()
    assert report.ok
    assert [point.name for point in report.points] == list(POINTS)
    assert [point.inputs["num_keep"] for point in report.points] == [(1,), (5,), (16,)]  # 30 % of 16
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for point in report.points:
        feeds = {
            "pixel_values": np.zeros(point.inputs["pixel_values"], np.float32),
            "num_keep": np.array(point.inputs["num_keep"], np.int64),
        }
        shapes = {name: value.shape for name, value in zip(names, session.run(None, feeds), strict=True)}
        assert point.outputs == shapes
    (engine,) = report.engines
    assert (engine.capability, engine.bytes > 10_000, engine.seconds > 0) == ("SM86", True, True)
    assert json.loads(json.dumps(report.to_dict()))["points"][1]["outputs"]["kept_indices"] == [1, 5]


@needs_rtx
def test_whole_rows_are_kept_in_steps_of_a_row(tmp_path: Path) -> None:
    report = build_check(pruned(tmp_path, PruneOptions(strategy="row", grid=(4, 4))), capabilities=())
    assert report.ok, report.findings
    assert [point.outputs["kept_indices"] for point in report.points] == [(1, 4), (1, 4), (4, 16)]


@needs_rtx
def test_a_graph_without_open_sizes(tmp_path: Path) -> None:
    model = graph("y = Relu(x)", "float[2,3] x", "float[2,3] y")
    report = build_check(saved(model, tmp_path), capabilities=("SM120",))
    assert (report.ok, report.points[0].outputs, len(report.engines)) == (True, {"y": (2, 3)}, 1)


@needs_rtx
def test_a_refused_node_is_named(tmp_path: Path) -> None:
    model = graph("y = BitwiseNot(x)", "int64[4] x", "int64[4] y")
    report = build_check(saved(model, tmp_path))
    assert rules(report) == ["rtx-parse"]
    assert (report.findings[0].op_type, report.findings[0].node) == ("BitwiseNot", "BitwiseNot_0")
    assert not report.ok


@needs_rtx
def test_a_refused_selection_is_named(tmp_path: Path) -> None:
    model = graph("y = Compress<axis=0>(x, c)", "float[4] x, bool[4] c", "float[m] y")
    (finding,) = build_check(saved(model, tmp_path)).findings
    assert (finding.rule, finding.op_type, finding.node) == ("rtx-parse", "Compress", "Compress_0")


@needs_rtx
def test_a_topk_beyond_the_limit_is_refused_by_the_builder_and_by_us(tmp_path: Path) -> None:
    report = build_check(saved(topk(4000, "int64[1] k = {3841}"), tmp_path), capabilities=("SM86",))
    found = {finding.rule: finding for finding in report.findings}
    assert set(found) == {"topk-limit", "rtx-build"}
    assert found["topk-limit"].node == "TopK_0"
    assert "at the maximum" in report.findings[-2].message
    assert "no engine for SM86: " in found["rtx-build"].message
    assert "K exceeds the maximum value allowed" in found["rtx-build"].message


@needs_rtx
def test_what_the_builder_does_not_catch(tmp_path: Path) -> None:
    body = "y, i = TopK<axis=1>(x, k)"
    model = graph(body, "float[b,n] x", "float[b,m] y", "int64[1] k = {100}")
    report = build_check(
        saved(model, tmp_path), {"x": Profile((1, 16), (1, 256), (1, 1024))}, capabilities=("SM86",)
    )
    ours = [finding for finding in report.findings if finding.rule == "topk-beyond-axis"]
    assert [finding.message for finding in ours] == ["K is 100, but the axis has 16 elements at the minimum"]
    assert len(report.engines) == 1  # it builds all the same


@needs_rtx
def test_a_reshape_that_fits_one_size_only(tmp_path: Path) -> None:
    model = graph("y = Reshape(x, s)", "float[b,n] x", "float[a,c,d] y", "int64[3] s = {1, 16, 16}")
    report = build_check(
        saved(model, tmp_path), {"x": Profile((1, 16), (1, 256), (1, 1024))}, capabilities=("SM86",)
    )
    assert {finding.rule for finding in report.findings} == {"rtx-shapes"}
    assert ["at the minimum" in str(f) or "at the maximum" in str(f) for f in report.findings] == [True, True]
    assert len(report.engines) == 1  # it builds all the same


@needs_rtx
def test_attention_in_float32_parses_and_does_not_build(tmp_path: Path) -> None:
    shape, body = "[b,2,8,16]", "y = Attention(q, k, v)"
    half, single = (
        attention(body, ", ".join(f"{kind}{shape} {name}" for name in "qkv"), f"{kind}{shape} y")
        for kind in ("float16", "float")
    )
    assert build_check(saved(half, tmp_path), capabilities=("SM86",)).ok
    assert rules(build_check(saved(single, tmp_path), capabilities=("SM86",))) == ["rtx-build"]


OURS = (
    "custom-domain",
    "invalid-node",
    "topk-beyond-axis",
    "gather-range",
)  # it takes these, or must not see them
REFUSED = {case.rule: case for case in CASES if case.severities[2] == "error" and case.rule not in OURS}


def fixed_profiles(model: ir.Model) -> dict[str, Profile]:
    """One size for every dim that varies, and ones for numbers that the host gives."""
    profiles = {}
    for value in model.graph.inputs:
        sizes = dims(value) or ()
        point = tuple(
            size if isinstance(size, int) else {"b": 1, "n": 16}.get(str(size), 4) for size in sizes
        )
        if read_on_host(value):
            point = (1,) * (point[0] if point else 1)
        profiles[str(value.name)] = Profile(point, point, point)
    return profiles


@needs_rtx
@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
def test_it_refuses_what_lint_calls_an_error(case: Case, tmp_path: Path) -> None:
    path = saved(case.fires, tmp_path)
    report = build_check(path, fixed_profiles(case.fires), capabilities=("SM86",))
    assert any(rule.startswith("rtx-") for rule in rules(report))


@needs_rtx
def test_an_input_that_sizes_others_needs_a_profile(tmp_path: Path) -> None:
    model = graph("y = Expand(x, k)", "float[1] x, int64[1] k", "float[m] y")
    report = build_check(saved(model, tmp_path), capabilities=("SM86",))
    assert rules(report) == ["rtx-profile"]
    assert "input 'k' varies or sizes other tensors" in report.findings[0].message
    report = build_check(saved(model, tmp_path), {"k": Profile((1,), (4,), (8,))}, capabilities=("SM86",))
    assert report.ok
    assert [point.outputs["y"] for point in report.points] == [(1,), (4,), (8,)]


@needs_rtx
def test_foreign_operators_are_never_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "_CHILD", tmp_path / "never.py")
    report = build_check(saved(graph("y = com.microsoft.Gelu(x)"), tmp_path))
    assert rules(report) == ["custom-domain"]
    assert (report.version, report.parse_seconds, report.points, report.engines) == ("", None, (), ())


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A child in place of the real one, and TensorRT for RTX as if it were installed."""
    child = tmp_path / "child.py"
    monkeypatch.setattr(rtx, "_CHILD", child)
    monkeypatch.setattr(rtx, "_installed", lambda: True)
    return child


_SAYS = "import json, os, sys, time\nopen(sys.argv[2], 'w').write(json.dumps({'stage': 'parsing'}) + '\\n')\n"


def test_a_child_that_aborts_is_a_finding(tmp_path: Path, stand_in: Path) -> None:
    stand_in.write_text(_SAYS + "sys.stderr.write('no creator\\n'); sys.stderr.flush(); os.abort()")
    report = build_check(saved(graph("y = Relu(x)", "float[2] x", "float[2] y"), tmp_path))
    (finding,) = report.findings
    assert finding.rule == "rtx-crash"
    assert finding.message == "the process ended by signal SIGABRT: no creator while parsing"
    assert not report.ok


def test_a_child_that_fails_before_it_says_anything(tmp_path: Path, stand_in: Path) -> None:
    stand_in.write_text("raise SystemExit(3)")
    report = build_check(saved(graph("y = Relu(x)", "float[2] x", "float[2] y"), tmp_path))
    assert [f.message for f in report.findings] == ["the process ended by exit code 3 while starting"]


def test_a_child_that_hangs_is_a_finding(tmp_path: Path, stand_in: Path) -> None:
    stand_in.write_text(_SAYS + "time.sleep(60)")
    report = build_check(saved(graph("y = Relu(x)", "float[2] x", "float[2] y"), tmp_path), timeout=1.0)
    assert rules(report) == ["rtx-timeout"]
    assert report.findings[0].message == "timeout after 1 s while parsing"


def test_shapes_that_differ_from_onnx_are_a_finding(tmp_path: Path, stand_in: Path) -> None:
    lines = [
        {"stage": "parsed", "errors": [], "seconds": 0.1},
        {
            "stage": "inferred",
            "point": "fixed point",
            "errors": [],
            "logged": [],
            "shapes": {"y": [3], "z": [-1]},
        },
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    stand_in.write_text(f"import sys\nopen(sys.argv[2], 'w').write({text!r})")
    model = graph("y = Relu(x) z = Neg(x)", "float[2] x", "float[2] y, float[2] z")
    (finding,) = build_check(saved(model, tmp_path)).findings
    assert finding.message == "output 'y' has dims (3,) at the fixed point, by ONNX they are (2,)"


def test_a_missing_package_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "_installed", lambda: False)
    with pytest.raises(OptionError, match="which is not installed: pip install tensorrt-rtx"):
        build_check(tmp_path / "none.onnx")


@pytest.mark.parametrize(("points", "message"), [
    (((1, 2), (1, 2), (1,)), r"profile is \(1, 2\), \(1, 2\), \(1,\), but it is minimum <= optimum"),
    (((4,), (2,), (8,)), "minimum <= optimum <= maximum in every place"),
    (((-1,), (2,), (8,)), "all >= 0"),
])  # fmt: skip
def test_a_profile_out_of_order(points: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Profile(*points)


@pytest.mark.parametrize(("inputs", "given", "message"), [
    ("float[b,3] x", {"z": ((1,), (1,), (1,))}, "profile of input 'z', but the inputs are x"),
    ("float[b,3] x", {"x": ((1, 2),) * 3}, r"'x' is \(1, 2\) to \(1, 2\), but its dims are \('b', 3\)"),
    ("int64[1] k, float[2,3] x", {"k": ((1, 2),) * 3}, "'k' has 2 numbers, but the input holds 1"),
    ("float[b,3,h,w] x", {}, r"'x' has dims \('b', 3, 'h', 'w'\), and more than the number of images"),
    ("float[b,n] x, int64[1] num_keep", {"x": ((1, 4),) * 3}, "'num_keep' can be anything: give its profile"),
])  # fmt: skip
def test_profiles_that_do_not_fit(
    inputs: str, given: dict[str, tuple[tuple[int, ...], ...]], message: str
) -> None:
    view = view_of(graph("y = Relu(x)", inputs, "float[m] y"))
    with pytest.raises(OptionError, match=message):
        derive_profiles(view, {name: Profile(*points) for name, points in given.items()}, 3840)


def test_profiles_without_a_scores_output() -> None:
    model = text_encoder()
    prune(model, PruneOptions(scores_output=False))
    profiles = derive_profiles(view_of(model), {}, 4)
    assert profiles["x"] == Profile((1, 7, 8), (1, 7, 8), (4, 7, 8))
    assert profiles["num_keep"] == Profile((1,), (2,), (4,))  # 30 % of 6; the limit is 4


def test_profiles_where_the_number_of_tokens_varies() -> None:
    body = "token_scores = ReduceMean<keepdims=0>(x, two) v, y = TopK<axis=1>(token_scores, num_keep)"
    outputs = "int64[b,m] y, float[b,n] token_scores"
    view = view_of(graph(body, "float[b,n,8] x, int64[1] num_keep", outputs, "int64[1] two = {2}"))
    given = {"x": Profile((1, 4, 8), (1, 100, 8), (2, 5000, 8))}
    assert derive_profiles(view, given, 3839)["num_keep"] == Profile((1,), (30,), (3839,))
