"""The comparison of whole models, from end to end on a tiny one, and its arithmetic on made-up samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import readme
from bench.checkpoints import Recipe, write_checkpoint
from bench.configurations import CONFIGURATIONS, configuration, hf_config
from bench.costs import model_shape
from bench.environment import Environment
from bench.errors import BenchError
from bench.interleave import Measurement
from bench.options import Settings
from bench.processors import special_token_ids
from bench.readme import BEGIN, END, README, RESULT, table_of, updated
from bench.results import RESULTS, read_result
from bench.vlm import __main__ as script
from bench.vlm import rig
from bench.vlm.base import RATIOS, Task
from bench.vlm.bundle_engine import BundleEngine
from bench.vlm.engines import ENGINES, LANGUAGE, choose, find_engine
from bench.vlm.figures import VlmRun, activation_bytes, weight_bytes
from bench.vlm.plot import draw
from bench.vlm.rig import Bench, Entry, figure_name
from bench.vlm.tables import make_result
from bench.vlm.transformers_engine import TransformersEngine
from bench.workspace import Workspace
from runtime import contract, load_bundle
from runtime.kv_cache import cache_bytes

REFERENCE = "transformers fp32 sdpa"
ENVIRONMENT = Environment("a cpu", 2, 2, 8.0, "Linux", "3.11", {}, None, "python -m bench.vlm", "today")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A work directory of a model with one decoder layer and two of the tower."""
    root = tmp_path_factory.mktemp("vlm-work")
    with pytest.MonkeyPatch.context() as patch:
        tiny = configuration("tiny", decoder_layers=1)  # tracing time grows with the layers
        patch.setitem(CONFIGURATIONS, "tiny", replace(tiny, vision=tiny.vision | {"num_hidden_layers": 2}))
        yield root


@pytest.fixture(scope="module")
def result(work: Path) -> dict[str, Any]:
    """Figures of two engines of the whole model, beside one that cannot be had."""
    engines = ["fopru fp32", "openvino-genai:int4"]
    options = ["--model", "tiny", "--work", str(work), "--results", str(work / "results"), "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "importlib.util.find_spec", lambda name: None if name.startswith("openvino") else find_spec(name)
        )
        assert script.main([*options, "--rounds", "1", "--new", "3", "--engines", *engines]) == 0
    return read_result(work / "results" / "vlm-tiny.json").figures


def test_every_figure_of_every_ratio_is_there(result: dict[str, Any], work: Path) -> None:
    assert result["visual_tokens"] == {"1": 64, "0.5": 32, "0.3": 19, "0.1": 6}
    ours = result["engines"]["fopru fp32"]
    assert (ours["state"], ours["same_tokens"]) == ("measured", 3)
    assert ours["cosine"] > 0.99999
    assert list(ours["ratios"]) == ["1", "0.5", "0.3", "0.1"]
    for name, own in ours["ratios"].items():
        assert own["prompt_tokens"] == result["text_tokens"] + result["visual_tokens"][name]
        assert own["kv_allocated"] >= own["kv_bytes"] > 0
        assert own["peak_rss"] > own["weight_bytes"]
        assert own["ttft"]["median"] >= own["vision"]["median"] + own["prefill"]["median"]
        assert own["ttft_achieved"] == own["ttft_speedup"] / own["ttft_speedup_predicted"]
    assert ours["ratios"]["0.3"]["ttft_speedup_predicted"] > 1
    assert ours["ratios"]["0.3"]["kv_bytes"] < ours["ratios"]["1"]["kv_bytes"]
    assert (work / "results" / "vlm-tiny.png").read_bytes().startswith(b"\x89PNG")


def test_transformers_answers_unpruned_alone(result: dict[str, Any]) -> None:
    theirs = result["engines"][REFERENCE]
    assert list(theirs["ratios"]) == ["1"]
    assert (
        theirs["ratios"]["1"]["prompt_tokens"]
        == result["engines"]["fopru fp32"]["ratios"]["1"]["prompt_tokens"]
    )
    assert "embed" not in theirs["ratios"]["1"]


def test_an_engine_that_is_not_here_is_a_row_with_its_command(result: dict[str, Any]) -> None:
    state = result["engines"]["openvino-genai int4"]["state"]
    assert state.startswith("not installed (openvino, openvino_genai, openvino_tokenizers): ")
    assert "pip install" in state


def test_one_answer_is_wanted_to_have_a_token_to_decode(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--model", "tiny", "--new", "1"]) == 2
    assert "--new is 1: give at least 2" in capsys.readouterr().err


# engines


def test_the_reference_comes_first_whatever_is_asked_for() -> None:
    assert [spec.name for spec in choose(["fopru int8"])] == [REFERENCE, "fopru int8"]
    assert [spec.name for spec in choose([REFERENCE, REFERENCE])] == [REFERENCE]
    assert len(choose([])) == len(ENGINES) + len(LANGUAGE)


def test_an_engine_of_the_language_model_is_named_as_in_peers() -> None:
    spec = find_engine("llama.cpp:q8_0")
    assert (spec.name, spec.precision, spec.open) == ("llama.cpp q8_0", "int8", None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vllm", "no engine is called 'vllm': choose one of transformers fp32 sdpa, .* or PEER:VARIANT"),
        ("vllm:fp32", "no peer is called 'vllm'"),
        ("llama.cpp:q2", "llama.cpp has no variant 'q2'"),
    ],
)
def test_an_unknown_engine_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        find_engine(name)


@pytest.fixture(scope="module")
def task(work: Path, result: dict[str, Any]) -> Task:
    return Task(work / "checkpoints" / "tiny", work / "tiny", threads=1, side=112)


def test_both_engines_are_one_model(task: Task) -> None:
    ours, theirs = BundleEngine(task, "onnxruntime"), TransformersEngine(task, "float32", "eager")
    one, two = ours.answer(1.0, 4), theirs.answer(1.0, 4)
    assert one.tokens == two.tokens
    assert (one.visual_tokens, one.prompt_tokens) == (two.visual_tokens, two.prompt_tokens)
    # Ours has room for the whole answer; transformers' holds what it has seen, all but the last token.
    assert one.kv_bytes == two.kv_bytes
    # float32 sums in another order
    np.testing.assert_allclose(ours.logits(), theirs.logits(), rtol=0, atol=1e-4)
    assert one.to_dict()["ttft"] == one.vision + (one.embed or 0.0) + one.prefill


def test_transformers_is_not_asked_to_prune(task: Task) -> None:
    engine = TransformersEngine(task, "float32", "sdpa")
    with pytest.raises(BenchError, match=r"transformers prunes nothing: ratio 0\.3 cannot be asked"):
        engine.answer(0.3, 1)


# the rig, with engines that are not there


class _Fake:
    """An engine in this process: ratio r takes 1 + r seconds, answers 7 and then what it is told."""

    opened: list[str]

    def __init__(self, _: Bench, spec: Any) -> None:
        self.name = spec.name
        type(self).opened.append(spec.name)

    def __enter__(self) -> _Fake:
        return self

    def __exit__(self, *_: object) -> None: ...

    def answer(self, ratio: float, new: int) -> dict[str, Any]:
        if self.name == "fopru openvino":
            raise BenchError("no such processor")
        tokens = [7] * new if self.name != "fopru int8" else [7] + [8] * (new - 1)
        return {
            "ttft": 1 + ratio,
            "vision": 1.0,
            "embed": None,
            "prefill": ratio,
            "decode": 0.1,
            "tokens": tokens,
        }

    def logits(self) -> np.ndarray[Any, Any]:
        return np.array([1.0, 0.0 if self.name != "fopru int4" else -9.0], np.float32)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(rig, "_Model", _Fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    _Fake.opened = []
    settings = Settings(Workspace(tmp_path), tmp_path, threads=1, rounds=2, warmup=0)
    rows = {ratio: int(100 * ratio) for ratio in RATIOS}
    return Bench("x", tmp_path, tmp_path, {}, settings, 32, 100, rows, new=3)


def test_only_what_is_the_same_model_counts(bench: Bench) -> None:
    names = ["fopru fp32", "fopru int8", "fopru int4", "fopru openvino"]
    entries = {entry.name: entry for entry in rig.check(bench, choose(names), lambda _: None)}
    assert entries["fopru fp32"].state == ""
    assert (entries["fopru fp32"].same_tokens, entries["fopru int8"].same_tokens) == (3, 1)
    assert entries["fopru int4"].state.startswith("not the same model: cosine 0.1")
    assert entries["fopru openvino"].state == "failed: no such processor"
    assert set(entries["fopru fp32"].answers) == set(RATIOS)


def test_every_round_opens_every_engine_and_turns_the_ratios(bench: Bench) -> None:
    specs = choose(["fopru fp32"])
    entries = [Entry(spec) for spec in specs]
    measured = rig.measure(bench, entries, lambda _: None)
    assert _Fake.opened == [REFERENCE, "fopru fp32", "fopru fp32", REFERENCE]
    assert measured.samples["fopru fp32"]["ttft at 0.3"] == [1.3, 1.3]
    assert "embed at 1" not in measured.samples["fopru fp32"]


# arithmetic


def made_run() -> VlmRun:
    shape = model_shape(hf_config(configuration("llava-onevision-0.5b"), special_token_ids()))
    by_ratio = {
        1.0: {
            "ttft": [6.0, 6.0],
            "vision": [3.0, 4.0],
            "embed": [0.5, 0.5],
            "prefill": [2.5, 1.5],
            "decode": [0.1] * 2,
        },
        0.3: {
            "ttft": [4.0, 3.0],
            "vision": [3.0, 2.0],
            "embed": [0.5, 0.5],
            "prefill": [0.5, 0.5],
            "decode": [0.1] * 2,
        },
    }
    ours = {figure_name(name, ratio): own for ratio, found in by_ratio.items() for name, own in found.items()}
    theirs = {
        "ttft at 1": [9.0, 12.0],
        "vision at 1": [5.0, 6.0],
        "prefill at 1": [4.0, 6.0],
        "decode at 1": [0.2, 0.2],
    }
    alone = {
        "prefill at 1": [2.0, 2.0],
        "prefill at 0.3": [1.0, 1.0],
        "decode at 1": [0.05] * 2,
        "decode at 0.3": [0.05] * 2,
    }
    samples = {REFERENCE: theirs, "fopru fp32": ours, "llama.cpp fp32": alone}
    answer = {"prompt_tokens": 749, "kv_bytes": 9, "kv_allocated": 9, "peak_rss": 300}
    both = {1.0: answer, 0.3: answer | {"prompt_tokens": 239}}
    specs = [replace(find_engine(name.replace("cpp ", "cpp:")), ratios=(1.0, 0.3)) for name in samples]
    specs[0] = replace(specs[0], ratios=(1.0,))
    entries = [Entry(spec, "", 1.0, 3, both) for spec in specs]
    entries.append(Entry(find_engine("fopru int4"), "failed: no such file"))
    measured = Measurement(samples, REFERENCE, 2, 0)
    memory = {("fopru fp32", 1.0): (100, 50, 50)}
    keeps = {1.0: 729, 0.3: 219}
    return VlmRun("made", entries, measured, shape, keeps, 20, {1.0: 0.0, 0.3: 0.002}, memory)


def test_each_stage_is_predicted_from_its_own_multiply_adds() -> None:
    run = made_run()
    vision = run.shape.vision_stage(219) / run.shape.vision_stage()
    prefill = run.shape.prefill_stage(20, 219) / run.shape.prefill_stage(20)
    rounds = [6.0 / (3.0 * vision + 0.5 + 2.5 * prefill), 6.0 / (4.0 * vision + 0.5 + 1.5 * prefill)]
    predicted = run.predicted("fopru fp32", "ttft", 0.3)
    assert predicted == sum(rounds) / 2
    assert run.predicted("fopru fp32", "ttft", 1.0) == 1.0
    assert run.predicted("fopru fp32", "prefill", 0.3) == 1 / prefill
    assert run.speedup("fopru fp32", "ttft", 0.3) == 1.75  # median of 1.5 and 2
    assert run.achieved("fopru fp32", "ttft", 0.3) == 1.75 / predicted


def test_an_engine_without_a_figure_has_none_of_its_ratios() -> None:
    run = made_run()
    assert run.speedup(REFERENCE, "ttft", 0.3) is None
    assert run.predicted("llama.cpp fp32", "ttft", 0.3) is None
    assert run.speedup("llama.cpp fp32", "prefill", 0.3) == 2.0
    assert run.against("fopru fp32", REFERENCE, "ttft", 1.0) == 1.75  # 1.5 and 2
    assert run.against("llama.cpp fp32", REFERENCE, "ttft", 1.0) is None


def test_memory_is_compared_with_what_it_is_made_of() -> None:
    run = made_run()
    assert run.over_floor("fopru fp32", 1.0) == 1.5
    assert run.over_floor("fopru fp32", 0.3) is None


def test_the_result_has_a_row_per_engine_and_ratio(tmp_path: Path) -> None:
    result = make_result(made_run(), ENVIRONMENT)
    main, gains, memory, engines = result.tables
    assert [row[:3] for row in main.rows] == [
        (REFERENCE, "1", "749"),
        ("fopru fp32", "1", "749"),
        ("fopru fp32", "0.3", "239"),
        ("llama.cpp fp32 (decoder)", "1", "749"),
        ("llama.cpp fp32 (decoder)", "0.3", "239"),
    ]
    assert main.rows[2][3:] == ("2.50", "2.0", "0.500", "3.50", "1.75", "10.0", "0.0", "0.00")
    assert main.rows[4][3:8] == ("-", "-", "1.000", "-", "-")
    assert [row[0] for row in gains.rows] == [
        "fopru fp32, ttft",
        "fopru fp32, prefill",
        "llama.cpp fp32, prefill",
    ]
    assert memory.rows == (("fopru fp32", "1", "0", "0", "0", "0", "1.50"),)
    assert engines.rows[-1] == ("fopru int4", "-", "-", "failed: no such file")
    assert draw(made_run(), tmp_path / "deep" / "x.png").read_bytes().startswith(b"\x89PNG")


def test_weights_read_by_two_graphs_count_once(task: Task) -> None:
    assert task.bundle is not None
    bundle = load_bundle(task.bundle, verify=False)
    pruned, whole = (weight_bytes(bundle, contract.DECODER, pruned=pruned) for pruned in (True, False))
    config = hf_config(CONFIGURATIONS["tiny"], special_token_ids())
    stored = sum(path.stat().st_size for path in (task.bundle / "onnx").glob("*.onnx_data"))
    # The pruned encoder reads the same weights, and has constants of its own.
    assert whole <= pruned < whole + 4096
    assert 0.9 * stored < whole < 1.1 * stored
    assert cache_bytes(bundle.manifest.decoder, 10) == model_shape(config).decoder.kv_bytes(10)


def test_activations_are_those_of_the_larger_side() -> None:
    config = hf_config(configuration("llava-1.5-7b"), special_token_ids())
    shape = model_shape(config)
    # 577 rows of 16 heads: logits, probabilities, Q, K, V, output; 512 rows: gate, up, their product
    tower, decoder = 2 * 16 * 577**2 + 4 * 577 * 1024, 512 * (2 * 4096 + 3 * 11008) + 32064
    assert activation_bytes(config, shape, 600) == 4 * max(tower, decoder)
    assert activation_bytes(config, shape, 1) == 4 * tower


def test_another_precision_has_a_bundle_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, str]] = []

    def build(checkpoint: Path, bundle: Path, ratio: float, precision: str) -> None:
        built.append((bundle.name, precision))
        bundle.mkdir()

    monkeypatch.setattr("bench.workspace.measure_build", build)
    workspace = Workspace(tmp_path)
    checkpoint = write_checkpoint(Recipe("tiny", decoder_layers=1), tmp_path / "checkpoints" / "tiny")
    for _ in range(2):
        workspace.bundle_of(checkpoint, "tiny-int8", "decoder=int8")
    assert built == [("tiny-int8", "decoder=int8")]


def test_one_name_in_two_precisions_is_built_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(checkpoint: Path, bundle: Path, ratio: float, precision: str) -> None:
        built.append(f"{checkpoint.name} {ratio} {precision}")
        bundle.mkdir(exist_ok=True)

    monkeypatch.setattr("bench.workspace.measure_build", build)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = tmp_path / "one", tmp_path / "two"
    for ratio, checkpoint, precision in (
        (0.3, one, "fp32"),
        (0.3, one, "decoder=int4"),
        (0.3, two, "decoder=int4"),
        (0.5, two, "decoder=int4"),
        (0.5, two, "decoder=int4"),
    ):
        Workspace(tmp_path, ratio).bundle_of(checkpoint, "x", precision)
    assert built == ["one 0.3 fp32", "one 0.3 decoder=int4", "two 0.3 decoder=int4", "two 0.5 decoder=int4"]


# results that are in the repository


def test_precisions_of_one_engine_are_different_models() -> None:
    """Two precisions of an engine never have the same cosine to the last digit: one file was run twice."""
    stored = [*RESULTS.glob("vlm-*.json"), *RESULTS.glob("peers-*.json")]
    assert stored
    for file in stored:
        engines = json.loads(file.read_text())["figures"].get("engines", {})
        rows = engines.values() if isinstance(engines, dict) else engines
        names = (
            list(engines)
            if isinstance(engines, dict)
            else [f"{row['peer']} {row['variant']}" for row in rows]
        )
        # sdpa and eager are one model
        seen = {
            (name.split()[0], name.split()[1], row["cosine"])
            for name, row in zip(names, rows, strict=True)
            if row["cosine"] is not None and not name.startswith("transformers")
        }
        assert len({(engine, cosine) for engine, _, cosine in seen}) == len(seen), file.name


def test_the_readme_has_the_table_of_the_result() -> None:
    text = README.read_text(encoding="utf-8")
    assert updated(text, table_of(read_result(RESULTS / RESULT).figures)) == text


def test_a_readme_without_marks_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "README.md"
    target.write_text("nothing\n")
    assert readme.main(["--readme", str(target)]) == 2
    assert "README.md needs the lines" in capsys.readouterr().err
    assert target.read_text() == "nothing\n"


def test_marks_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(BenchError, match="each once and in that order"):
        updated(f"{END}\n{BEGIN}\n", "table")


def test_a_result_of_another_measurement_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    other = RESULTS / "decoder-llava-onevision-0.5b.json"
    assert readme.main(["--result", str(other)]) == 2
    assert "give --result one that bench.vlm wrote" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "why"), [(None, "No such file"), ("{", "Expecting property name")])
def test_a_result_that_cannot_be_read(
    text: str | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nowhere.json"
    if text is not None:
        path.write_text(text)
    assert readme.main(["--result", str(path)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: no result can be read from {path} (")
    assert why in shown
    assert shown.endswith("): give a file of bench/results, or run the measurement that writes it\n")


def test_the_table_is_put_between_the_marks(tmp_path: Path) -> None:
    target = tmp_path / "README.md"
    target.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    assert readme.main(["--readme", str(target)]) == 0
    lines = target.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("above", "below")
    assert "old" not in lines
    assert sum(line.startswith("| fopru fp32 |") for line in lines) == 4


def test_a_result_without_an_engine_is_refused(result: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match=r"the result has no fopru int8 at ratio 1: run python -m bench.vlm"):
        table_of(result)
