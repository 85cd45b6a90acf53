"""Peers: prompts, checkpoints, the check against PyTorch, workers and tables. Nothing here asserts a time."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from bench.checkpoints import Recipe, write_checkpoint
from bench.configurations import CONFIGURATIONS, configuration
from bench.environment import Environment
from bench.errors import BenchError
from bench.interleave import Measurement
from bench.peers import rig
from bench.peers.__main__ import main, rows_of
from bench.peers.base import PRECISIONS, Engine, Peer, SteppingEngine, Task, Variant, require_bundle
from bench.peers.gguf_file import _interleaved
from bench.peers.models import ensure_decoder, language_model_of, prompt_ids, rows_at
from bench.peers.onnxruntime_genai_peer import with_embedding
from bench.peers.openvino_genai_peer import OPTIMUM, export_ir
from bench.peers.registry import PEERS, choose, find_peer
from bench.peers.rig import Bench, Entry, Worker, agreement, check, measure
from bench.peers.tables import make_result

VOCABULARY = 512
ENVIRONMENT = Environment(
    "a cpu", 2, 2, 8.0, "Linux", "3.11", {}, None, "python -m bench.peers", "2026-01-01"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_decoder("tiny", tmp_path_factory.mktemp("decoder") / "tiny")


@pytest.fixture
def bench(checkpoint: Path, tmp_path: Path) -> Bench:
    return Bench(checkpoint, None, tmp_path, VOCABULARY, (40, 20), 4, 1)


class Table(SteppingEngine):
    """After token t the logits are row t of a table; the prompt's last token counts."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self.rows = rows

    def prefill(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.step(int(ids[-1]))

    def step(self, token: int) -> np.ndarray[Any, Any]:
        return self.rows[token]


def quiet(_: str) -> None:
    """Progress that nobody reads."""


def nothing(_: Task) -> None:
    """A conversion of nothing."""


def peer_of(engine: Engine | Exception, name: str = "fake", **changes: Any) -> Peer:
    def opened(task: Task) -> Engine:
        if isinstance(engine, Exception):
            raise engine
        return engine

    given: dict[str, Any] = {
        "name": name,
        "packages": (),
        "modules": (),
        "install": f"pip install {name}",
        "variants": (Variant("fp32", "fp32"),),
        "prepare": nothing,
        "open": opened,
    }
    return Peer(**given | changes)


class InProcess:
    """A `Worker` without a process, for peers that no registry knows."""

    def __init__(self, peer: Peer, task: Task, *, prepare: bool = False) -> None:
        self.peer, self.task = peer, task
        if prepare and peer.prepare is not None:
            peer.prepare(task)

    def __enter__(self) -> InProcess:
        try:
            self.engine = self.peer.open(self.task)
        except RuntimeError as error:
            raise BenchError(str(error)) from error
        return self

    def __exit__(self, *_: object) -> None: ...

    def generate(self, ids: np.ndarray[Any, Any], new: int) -> dict[str, Any]:
        return vars(self.engine.generate(ids, new)) | {"peak_rss": 10}

    def logits(self, ids: np.ndarray[Any, Any], more: list[int]) -> np.ndarray[Any, Any]:
        return self.engine.logits(ids, np.array(more))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "Worker", InProcess)


def noise(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32)


# prompts and rows


def test_prompts_are_the_same_every_time_and_have_no_special_token() -> None:
    ids = prompt_ids(VOCABULARY, 5000)
    assert ids.dtype == np.int64
    assert (ids.min(), ids.max()) == (4, VOCABULARY - 1)  # 0..3 are special (bench.processors)
    assert np.array_equal(ids, prompt_ids(VOCABULARY, 5000))
    assert not np.array_equal(ids, prompt_ids(VOCABULARY, 5000, seed=1))


def test_rows_are_text_and_the_visual_tokens_that_the_runtime_would_keep() -> None:
    assert rows_at((0.3, 1.0, 0.1), 576, 40) == {616: 1.0, 213: 0.3, 98: 0.1}


def test_rows_come_from_the_command_line() -> None:
    given = argparse.Namespace(rows="240,800,240", visual_tokens=None, text_tokens=40)
    assert rows_of(given) == {800: None, 240: None}
    given.visual_tokens = 100
    assert rows_of(given) == {140: 1.0, 90: 0.5, 70: 0.3, 50: 0.1}


@pytest.mark.parametrize("text", ["", "a", "3,0", "-5"])
def test_rows_must_be_positive_numbers(text: str) -> None:
    with pytest.raises(BenchError, match="give whole numbers with commas, such as 240,800"):
        rows_of(argparse.Namespace(rows=text, visual_tokens=None, text_tokens=1))


def test_visual_tokens_must_be_positive() -> None:
    with pytest.raises(BenchError, match="--visual-tokens is 0 and --text-tokens 3: give at least 1"):
        rows_of(argparse.Namespace(rows="1", visual_tokens=0, text_tokens=3))


# the registry


def test_every_variant_has_a_name_of_its_own_and_a_file_of_its_peer() -> None:
    names = [(peer.name, variant.name) for peer, variant in choose([])]
    assert len(set(names)) == len(names)
    assert names[0] == ("transformers", "fp32 sdpa")  # what the others are compared with
    folder = Path(rig.__file__).parent
    files = {f"{name.replace('.', '_').replace('-', '_')}_peer.py" for name in PEERS}
    assert files == {path.name for path in folder.glob("*_peer.py")}


def test_peers_and_variants_are_chosen_by_name_in_the_order_of_tables() -> None:
    chosen = choose(["llama.cpp:q4_0", "transformers:bf16 sdpa", "openvino"])
    assert [(peer.name, variant.name) for peer, variant in chosen] == [
        ("transformers", "bf16 sdpa"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("llama.cpp", "q4_0"),
    ]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BenchError, match="no peer is called 'vllm': choose one of transformers, fopru"):
        choose(["vllm"])
    with pytest.raises(BenchError, match=r"llama\.cpp has no variant 'q9': choose one of fp32, bf16"):
        choose(["llama.cpp:q9"])
    with pytest.raises(BenchError, match="variant v has precision 'fp8': choose one of fp32, fp16"):
        Variant("v", "fp8")


def test_a_peer_names_the_modules_that_it_lacks() -> None:
    peer = peer_of(Table(noise(0)), modules=("json", "no_such_engine"))
    assert peer.missing() == ("no_such_engine",)


# engines


def test_a_stepping_engine_answers_greedily_and_gives_logits() -> None:
    rows = noise(0)
    answer = Table(rows).generate(np.array([7, 9]), 3)
    first = int(rows[9].argmax())
    second = int(rows[first].argmax())
    assert answer.tokens == (first, second, int(rows[second].argmax()))
    assert answer.prefill > 0
    assert answer.decode > 0
    assert Table(rows).generate(np.array([7]), 1).decode == 0
    assert np.array_equal(Table(rows).logits(np.array([7, 9]), np.array([1, 2])), rows[[9, 1, 2]])


@pytest.mark.parametrize("variant", find_peer("transformers").variants, ids=lambda variant: variant.name)
def test_transformers_with_its_cache_is_the_model_without_one(
    variant: Variant, checkpoint: Path, tmp_path: Path
) -> None:
    ids, more = prompt_ids(VOCABULARY, 30), np.array([5, 6, 7])
    engine = find_peer("transformers").open(Task(checkpoint, tmp_path, variant, 1, 64))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        whole = model(torch.from_numpy(np.concatenate([ids, more]))[None]).logits[0, 29:].numpy()
        made = model.generate(
            torch.from_numpy(ids)[None], max_new_tokens=5, do_sample=False, eos_token_id=None
        )
    cosine, _ = agreement(engine.logits(ids, more), whole)
    assert cosine >= PRECISIONS[variant.precision]
    if variant.precision == "fp32":  # bf16 may choose another of two near tokens
        assert engine.generate(ids, 5).tokens == tuple(made[0, 30:].tolist())


# checkpoints


def test_a_checkpoint_is_written_once_and_never_over_something_else(tmp_path: Path) -> None:
    target = ensure_decoder("tiny", tmp_path / "tiny")
    (weights,) = target.glob("*.safetensors")
    before = weights.stat().st_mtime_ns
    assert ensure_decoder("tiny", target) == target
    assert weights.stat().st_mtime_ns == before
    ensure_decoder("tiny", target, dtype="float16")
    assert next(target.glob("*.safetensors")).stat().st_mtime_ns != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(
        BenchError, match="exists and is not a checkpoint of this script: give another --work"
    ):
        ensure_decoder("tiny", tmp_path / "mine")
    with pytest.raises(BenchError, match=r"no decoder is called 'gpt5': choose one of qwen2-0\.5b"):
        ensure_decoder("gpt5", tmp_path / "new")


def test_the_language_model_of_a_checkpoint_has_its_weights(tmp_path: Path) -> None:
    whole = write_checkpoint(Recipe("tiny"), tmp_path / "llava")
    found = language_model_of(whole, tmp_path / "text")
    ids = torch.from_numpy(prompt_ids(VOCABULARY, 12))[None]
    with torch.inference_mode():
        expected = LlavaForConditionalGeneration.from_pretrained(whole)(input_ids=ids).logits
        got = AutoModelForCausalLM.from_pretrained(found)(ids).logits
    assert torch.equal(got, expected)  # the same operators on the same weights
    before = (found / "config.json").stat().st_mtime_ns
    assert language_model_of(whole, found) == found
    assert (found / "config.json").stat().st_mtime_ns == before
    assert language_model_of(found, tmp_path / "again") == found


def test_a_language_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BenchError, match="is of kind 'gpt2': engines are compared on llama, qwen2"):
        language_model_of(tmp_path, tmp_path / "text")


def test_rotary_halves_become_neighbouring_pairs() -> None:
    rows = np.arange(12).reshape(12, 1)  # 2 query heads, or 3 key heads of 4 rows
    assert _interleaved("a.q_proj.weight", rows, (2, 3)).ravel().tolist() == [
        0,
        3,
        1,
        4,
        2,
        5,
        6,
        9,
        7,
        10,
        8,
        11,
    ]
    assert _interleaved("a.k_proj.weight", rows, (2, 3)).ravel().tolist() == [
        0,
        2,
        1,
        3,
        4,
        6,
        5,
        7,
        8,
        10,
        9,
        11,
    ]
    assert _interleaved("a.v_proj.weight", rows, (2, 3)) is rows
    assert _interleaved("a.q_proj.weight", rows, None) is rows


# the check against PyTorch


def test_agreement_is_a_mean_cosine_and_a_share_of_first_choices() -> None:
    one = np.array([[1.0, 0.0], [3.0, 4.0]])
    two = np.array([[2.0, 0.0], [4.0, 3.0]])
    cosine, same = agreement(one, two)
    assert cosine == pytest.approx((1 + 24 / 25) / 2, abs=1e-12)  # arithmetic in float64
    assert same == 0.5
    with pytest.raises(
        BenchError, match=r"logits have shape \(2, 1\), PyTorch's \(2, 2\): not the same model"
    ):
        agreement(one[:, :1], two)


@pytest.mark.usefixtures("in_process")
def test_only_engines_with_the_logits_of_the_first_one_count(bench: Bench) -> None:
    rows = noise(0)
    peers = [
        peer_of(Table(rows), "reference"),
        peer_of(Table(rows + 1e-6), "same"),
        peer_of(Table(noise(1)), "other"),
        peer_of(Table(rows * np.nan), "broken"),
        peer_of(Table(rows), "absent", modules=("no_such_engine",)),
        peer_of(Table(rows), "onnx", needs_bundle=True),
        peer_of(RuntimeError("out of luck"), "failing"),
    ]
    found = check(bench, [(peer, peer.variants[0]) for peer in peers], quiet)
    states = {entry.peer.name: entry.state for entry in found}
    assert states["reference"] == states["same"] == ""
    assert states["other"].startswith("not the same model: cosine ")
    assert states["broken"].startswith("not the same model: cosine nan ")
    assert states["absent"] == "not installed (no_such_engine): pip install absent"
    assert states["onnx"] == "needs the ONNX files of a bundle: give --bundle DIR"
    assert states["failing"] == "failed: out of luck"


@pytest.mark.usefixtures("in_process")
def test_engines_that_count_are_measured_for_every_length(bench: Bench) -> None:
    peers = [peer_of(Table(noise(0)), name) for name in ("one", "two")]
    entries = [Entry(peer, peer.variants[0], peak_rss=5) for peer in peers]
    entries.append(
        Entry(peer_of(RuntimeError("never opened"), "three"), Variant("fp32", "fp32"), state="failed")
    )
    measured, after = measure(bench, entries, (2, 1), quiet)
    assert list(measured) == [40, 20]
    assert set(measured[40].samples) == {"one fp32", "two fp32"}
    assert len(measured[20].values("two fp32", rig.DECODE)) == 2
    assert [entry.peak_rss for entry in after] == [10, 10, None]


def test_engines_that_do_not_fit_together_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "available_bytes", lambda: 3_000_000_000)
    peer = peer_of(Table(noise(0)))
    entry = Entry(peer, peer.variants[0], peak_rss=2_000_000_000)
    with pytest.raises(
        BenchError, match=r"2 engines together took 4\.0 GB when checked, and 3\.0 GB are free"
    ):
        measure(bench, [entry, replace(entry, peer=peer_of(Table(noise(0)), "b"))], (1, 0), quiet)


def test_a_bundle_is_asked_for(bench: Bench) -> None:
    peer = find_peer("openvino")
    with pytest.raises(BenchError, match="runs the ONNX files of a bundle: give --bundle DIR"):
        require_bundle(bench.task(peer, peer.variants[0]))


def test_conversions_of_other_weights_are_forgotten(bench: Bench) -> None:
    task = bench.task(*choose(["llama.cpp:fp32"])[0])
    rig._forget_another_checkpoint(task)
    task.folder.mkdir()
    rig._forget_another_checkpoint(task)
    assert task.folder.is_dir()
    (task.folder.with_name("llama.cpp.weights")).write_text("others")
    rig._forget_another_checkpoint(task)
    assert not task.folder.exists()


# workers


def test_a_worker_is_the_engine_in_another_process(bench: Bench) -> None:
    peer, variant = choose(["transformers:fp32 sdpa"])[0]
    task, ids = bench.task(peer, variant), prompt_ids(VOCABULARY, 20)
    here = peer.open(task)
    with Worker(peer, task) as worker:
        answer = worker.generate(ids, 3)
        logits = worker.logits(ids, answer["tokens"][:-1])
        with pytest.raises(BenchError, match="IndexError"):  # and it lives on
            worker.generate(np.array([VOCABULARY]), 1)
        assert worker.generate(ids, 3)["tokens"] == answer["tokens"]
    assert answer["tokens"] == list(here.generate(ids, 3).tokens)
    assert answer["peak_rss"] > answer["anonymous"] > 0
    # Threads differ in how they split a sum.
    np.testing.assert_allclose(logits, here.logits(ids, np.array(answer["tokens"][:-1])), rtol=0, atol=1e-4)


def test_a_worker_says_why_it_cannot_open(bench: Bench) -> None:
    peer, variant = choose(["transformers:fp32 sdpa"])[0]
    task = replace(bench.task(peer, variant), checkpoint=bench.work / "nowhere")
    with pytest.raises(BenchError, match="nowhere"), Worker(peer, task):
        pass


def test_a_worker_that_dies_names_its_log(bench: Bench) -> None:
    peer, variant = choose(["transformers:fp32 sdpa"])[0]
    with Worker(peer, bench.task(peer, variant)) as worker:
        worker._process.kill()
        with pytest.raises(BenchError, match=r"it ended with status -9: see .*transformers-fp32-sdpa.log"):
            worker.generate(prompt_ids(VOCABULARY, 4), 1)


def test_preparing_makes_the_folder_and_ends(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    peer, variant = choose(["transformers:fp32 sdpa"])[0]
    task = bench.task(peer, variant)
    with Worker(peer, task, prepare=True) as worker:
        assert worker._process.wait() == 0
    assert task.folder.is_dir()
    assert capfd.readouterr().out == ""


# our ONNX files in onnxruntime-genai


def test_a_decoder_with_its_embedding_takes_ids() -> None:
    width, words = 3, 5
    table = np.arange(words * width, dtype=np.float32).reshape(words, width)
    embedding = helper.make_model(
        helper.make_graph(
            [helper.make_node("Gather", ["table", "input_ids"], ["inputs_embeds"])],
            "embed",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])],
            [helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["batch", "seq", width])],
            [numpy_helper.from_array(table, "table")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    decoder = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Neg", ["num_logits_to_keep"], ["minus"]),
                helper.make_node("Reshape", ["minus", "one"], ["start"]),
                helper.make_node("Slice", ["inputs_embeds", "start", "end", "one"], ["kept"]),
                helper.make_node("MatMul", ["kept", "table"], ["logits"]),
            ],
            "decoder",
            [
                helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["batch", "seq", width]),
                helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
                helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, []),
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "logits", words])],
            # Also called `table`: two graphs may use one name for two things.
            [
                numpy_helper.from_array(np.ascontiguousarray(table.T), "table"),
                numpy_helper.from_array(np.array([1]), "one"),
                numpy_helper.from_array(np.array([1 << 30]), "end"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    joined = with_embedding(decoder, embedding)
    onnx.checker.check_model(joined)
    session = onnxruntime.InferenceSession(joined.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == {"input_ids", "attention_mask"}
    assert session.get_outputs()[0].shape[1] == 1
    feeds = {"input_ids": np.array([[4, 0, 2]]), "attention_mask": np.ones((1, 3), np.int64)}
    (logits,) = session.run(None, feeds)
    np.testing.assert_array_equal(logits[0], (table @ table[2])[None])  # small whole numbers: exact


# tables and the command


def test_a_result_has_every_engine_and_paired_ratios() -> None:
    base, other = peer_of(Table(noise(0)), "base", about="about base."), peer_of(Table(noise(0)), "other")
    entries = [
        Entry(base, base.variants[0], "", 1.0, 1.0, 2_000_000_000),
        Entry(other, other.variants[0], "", 0.5, 0.25, None),
        Entry(other, Variant("int8", "int8"), "not installed (x): pip install other"),
    ]
    samples = {"base fp32": {"prefill": [4.0, 8.0], "decode": [0.1, 0.1]}}
    samples["other fp32"] = {"prefill": [2.0, 2.0], "decode": [0.2, 0.2]}
    shorter = {name: {figure: [1.0, 1.0] for figure in figures} for name, figures in samples.items()}
    measured = {20: Measurement(samples, "base fp32", 2, 1), 10: Measurement(shorter, "base fp32", 2, 1)}
    found = make_result(
        "peers-x", (entries, measured), ({20: 1.0, 10: None}, {20: 400, 10: 100}), ENVIRONMENT
    )
    engines, long, short, gains = found.tables
    assert engines.rows[2] == ("other int8", "-", "-", "-", "not installed (x): pip install other")
    assert engines.rows[1][1:4] == ("0.50000", "25%", "-")
    assert long.title == "20 prompt rows (ratio 1)"
    assert short.title == "10 prompt rows"
    assert long.rows[1] == ("other fp32", "2.000", "3.00 [2.50, 3.50]", "200.0", "5.0", "0.50 [0.50, 0.50]")
    assert gains.rows == (("multiply-adds", "4.00"), ("base fp32", "6.00"), ("other fp32", "2.00"))
    assert "about base." in found.notes
    json.dumps(found.figures, allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "b"], "--bundle needs --checkpoint: the one that the bundle was built from"),
        (["--bundle", "b", "--configuration", "tiny"], "--bundle needs --checkpoint"),
        (["--new", "1"], "--new is 1: give at least 2"),
        (["--model", "tiny", "--rows", "2040"], "2072 positions are asked for, and tiny has 2048"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert main([*arguments, *folders]) == 2
    assert message in capsys.readouterr().err


def test_the_command_measures_and_lists_what_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    size = ["--model", "tiny", "--rows", "8", "--new", "2", "--rounds", "1", "--threads", "1"]
    chosen = ["--peers", "transformers:fp32 eager", "onnxruntime-genai"]
    assert main([*size, *folders, *chosen]) == 0
    engines = json.loads((tmp_path / "peers-tiny.json").read_text())["figures"]["engines"]
    states = [(engine["peer"], engine["variant"], engine["state"].split(":")[0]) for engine in engines]
    assert states[:2] == [
        ("transformers", "fp32 sdpa", "measured"),
        ("transformers", "fp32 eager", "measured"),
    ]
    assert states[2][2] in (  # where the package is, it lacks the bundle
        "not installed (onnxruntime_genai)",
        "needs the ONNX files of a bundle",
    )
    assert "8 prompt rows" in capsys.readouterr().out


def test_a_configuration_brings_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = configuration("tiny", decoder_layers=1)  # tracing time grows with the layers
    monkeypatch.setitem(CONFIGURATIONS, "tiny", replace(tiny, vision=tiny.vision | {"num_hidden_layers": 2}))
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    size = ["--configuration", "tiny", "--rows", "8", "--new", "2", "--rounds", "1", "--threads", "1"]
    assert main([*size, *folders, "--peers", "fopru:fp32"]) == 0
    engines = json.loads((tmp_path / "peers-tiny.json").read_text())["figures"]["engines"]
    assert [(own["peer"], own["state"]) for own in engines] == [
        ("transformers", "measured"),
        ("fopru", "measured"),
    ]
    assert engines[1]["cosine"] > 0.99999


def test_an_ir_that_cannot_be_exported_says_where_optimum_is_looked_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPTIMUM, sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # whatever is installed, this one is found first
    (tmp_path / "optimum.py").write_text("")
    with pytest.raises(BenchError, match=r"cannot export with .*name its Python in FOPRU_BENCH"):
        export_ir(checkpoint, tmp_path / "ir", "text-generation-with-past", ("fp32",))
    assert not (tmp_path / "ir").exists()


# engines that are optional


def test_llama_cpp_is_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    bench = Bench(checkpoint, None, tmp_path, VOCABULARY, (8,), 2, 1)
    entries = check(bench, choose(["transformers:fp32 sdpa", "llama.cpp"]), quiet)
    assert [entry.state for entry in entries] == [""] * len(entries)
