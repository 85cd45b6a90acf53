"""Building engines and finding them again: against a stand-in for TensorRT, and with TensorRT for RTX."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime import contract
from runtime.bundle import Bundle, load_bundle
from runtime.errors import EngineError
from runtime.manifest import FileInfo
from runtime.output import write_whole
from runtime.tensorrt.builder import EngineBuilder
from runtime.tensorrt.engines import (
    RECORD,
    TIMING_CACHE,
    build_command,
    build_engines,
    engine_folder,
    find_engine,
    find_engines,
    record_engines,
)
from runtime.tensorrt.identity import EngineIdentity
from runtime.tensorrt.plan import EnginePlan, InputProfile, Limits, plan_engines
from tests.engine_double import DAMAGED, OF_ANOTHER_DEVICE, fake_tensorrt

ORIN = EngineIdentity("orin", 87, "10.3.0", "6.2")
SMALL = Limits(max_images=2, max_prompt=40, max_new_tokens=10)
Bundles = Callable[[str], Path]
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx",
)


@pytest.fixture
def bundle(family_bundle: Bundles, tmp_path: Path) -> Bundle:
    return load_bundle(shutil.copytree(family_bundle("llava"), tmp_path / "llava"))


@pytest.fixture
def plan(bundle: Bundle) -> EnginePlan:
    return plan_engines(bundle.manifest, SMALL, 256 << 20)


def test_the_builder_is_told_what_the_plan_says(bundle: Bundle, plan: EnginePlan, tmp_path: Path) -> None:
    trt = fake_tensorrt()
    builder = EngineBuilder(trt, plan, b"earlier")
    graph = plan.graph(contract.DECODER_PORTABLE)
    size = builder.build(bundle.graph(graph.graph), graph, tmp_path / "engine")
    engine = json.loads((tmp_path / "engine").read_bytes())
    assert size == (tmp_path / "engine").stat().st_size
    ((network, config),) = trt.built
    assert engine[0] == network.flags == 1 << 1  # strongly typed, by its number in this module
    assert config.pools == {"WORKSPACE": 256 << 20}
    assert config.builder_optimization_level == 3
    assert config.flags == set()  # no TF32
    assert config.cache.content == b"earlier"
    assert builder.timings == b"earlier+"
    prefill, decode = config.profiles
    assert prefill.values == {"num_logits_to_keep": [(1,), (1,), (1,)]}
    assert prefill.shapes["past_key_values.0.key"] == [(1, 0, 2, 8), (1, 0, 2, 8), (1, 256, 2, 8)]
    assert decode.shapes["attention_mask"] == [(1, 2), (1, 21), (1, 257)]


@pytest.mark.parametrize(
    ("version", "name", "flags"),
    [("10.16.0", "tensorrt", 2), ("11.1.0", "tensorrt", 0), ("1.7.1", "tensorrt_rtx", 0)],
)
def test_strong_types_are_a_flag_in_tensorrt_10_only(
    version: str, name: str, flags: int, plan: EnginePlan, bundle: Bundle
) -> None:
    trt, graph = fake_tensorrt(version, name=name), contract.EMBED_TOKENS
    EngineBuilder(trt, plan).build(bundle.graph(graph), plan.graph(graph), bundle.path / "engine")
    assert trt.built[0][0].flags == flags


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (
            "parse",
            r"TensorRT does not take embed_tokens\.onnx: node /tower/NonZero_3 \(NonZero\): this operator "
            "is; not supported: build the bundle for this target",
        ),
        ("build", r"TensorRT built no engine of embed_tokens \(Could not allocate 1 GiB; for tactic 7\)"),
        ("profile", "TensorRT does not take profile all of embed_tokens: give other limits"),
    ],
)
def test_what_tensorrt_refuses_is_one_sentence(
    fails: str, message: str, bundle: Bundle, plan: EnginePlan
) -> None:
    builder = EngineBuilder(fake_tensorrt(fails=fails), plan)
    with pytest.raises(EngineError, match=message) as told:
        builder.build(
            bundle.graph(contract.EMBED_TOKENS), plan.graph(contract.EMBED_TOKENS), bundle.path / "engine"
        )
    assert not (bundle.path / "engine").exists()
    assert "\n" not in str(told.value)


def test_an_input_without_profile_is_refused(bundle: Bundle, plan: EnginePlan) -> None:
    builder = EngineBuilder(fake_tensorrt(), plan)
    graph = plan.graph(contract.VISION_ENCODER_FOPRU)
    for profile, words in (
        ({}, r"input pixel_values of vision_encoder_fopru has dims \[-1, 3, 32, 32\]"),
        (
            graph.profiles[0] | {"num_keep": InputProfile((1,), (1,), (1,))},
            "input num_keep of vision_encoder_fopru has a shape tensor",
        ),
    ):
        with pytest.raises(EngineError, match=f"{words}, for which the plan has no profile"):
            builder.build(
                bundle.graph(graph.graph), replace(graph, profiles=(profile,)), bundle.path / "engine"
            )


def test_engines_are_written_and_found(bundle: Bundle, plan: EnginePlan, tmp_path: Path) -> None:
    cache, seen = tmp_path / "my.cache", []
    cache.write_bytes(b"c")
    made = build_engines(
        bundle, ORIN, EngineBuilder(fake_tensorrt(), plan), cache, lambda graph: seen.append(graph.graph)
    )
    folder = bundle.path / "engines" / "orin-sm87-trt10.3.0-jp6.2"
    assert made.folder == folder == engine_folder(bundle, ORIN)
    assert seen == [graph.graph for graph in plan.graphs]
    names = {f"{name}.engine" for name in seen}
    assert {path.name for path in folder.iterdir()} == {*names, RECORD, TIMING_CACHE}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half-written beside it
    assert cache.read_bytes() == (folder / TIMING_CACHE).read_bytes() == b"c+++"
    assert find_engines(bundle, ORIN) == made
    assert find_engine(bundle.graph(contract.EMBED_TOKENS), ORIN) == folder / "embed_tokens.engine"
    load_bundle(bundle.path)  # engines do not make the bundle another one


def test_a_second_build_takes_up_the_timings(bundle: Bundle, plan: EnginePlan) -> None:
    build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), plan))
    other = plan_engines(bundle.manifest, replace(SMALL, unpruned=True), 256 << 20)
    made = build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), other))
    assert (made.folder / TIMING_CACHE).read_bytes() == b"+++" + b"++++"
    assert find_engines(bundle, ORIN).path(contract.VISION_ENCODER).is_file()


@pytest.mark.parametrize("content", [DAMAGED, OF_ANOTHER_DEVICE])
def test_timings_that_tensorrt_does_not_take(
    content: bytes, bundle: Bundle, plan: EnginePlan, tmp_path: Path
) -> None:
    cache = tmp_path / "my.cache"
    cache.write_bytes(content)
    with pytest.warns(
        UserWarning, match="does not take the timing cache, which is of another device or vers"
    ):
        made = build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), plan), cache)
    assert cache.read_bytes() == (made.folder / TIMING_CACHE).read_bytes() == b"+++"


def test_a_build_that_was_killed_leaves_nothing_to_the_next(bundle: Bundle, plan: EnginePlan) -> None:
    root = bundle.path / "engines"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, running, other = (
        root / f".{tag}.build{process}.x{end}"
        for tag, process, end in (
            (ORIN.tag, ended.pid, ".old"),
            (ORIN.tag, os.getpid(), ""),
            (f"{ORIN.tag}.1", ended.pid, ""),
        )
    )
    for folder in (left, running, other):
        folder.mkdir(parents=True)
        (folder / "vision_encoder_fopru.engine").write_bytes(b"half")
    build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), plan))
    assert sorted(root.iterdir()) == sorted([root / ORIN.tag, running, other])


@pytest.mark.parametrize("fails", ["parse", "build", "interrupt"])
def test_a_build_that_dies_leaves_what_was_there(fails: str, bundle: Bundle, plan: EnginePlan) -> None:
    error: Any = KeyboardInterrupt if fails == "interrupt" else EngineError
    with pytest.raises(error):
        build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(fails=fails), plan))
    assert list((bundle.path / "engines").iterdir()) == []
    before = build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), plan))
    with pytest.raises(error):
        build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(fails=fails), plan))
    assert [path.name for path in (bundle.path / "engines").iterdir()] == [ORIN.tag]
    assert find_engines(bundle, ORIN) == before


def test_a_folder_that_cannot_be_written(bundle: Bundle, plan: EnginePlan) -> None:
    (bundle.path / "engines").write_text("in the way")
    with pytest.raises(EngineError, match=r"the engines cannot be written to .*: free some space"):
        build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), plan))


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", b"one")
    write_whole(tmp_path / "x", b"two")
    assert (tmp_path / "x").read_bytes() == b"two"
    (tmp_path / "y").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "y", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_engines_of_another_device_are_refused(bundle: Bundle, plan: EnginePlan) -> None:
    with pytest.raises(
        EngineError, match=r"has no engines for orin .*JetPack 6\.2: run `python -m runtime\.engine"
    ):
        find_engines(bundle, ORIN)
    build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), plan))
    other = replace(ORIN, tensorrt="10.7.0")
    with pytest.raises(EngineError, match=r"it has some for orin-sm87-trt10\.3\.0-jp6\.2\): run"):
        find_engines(bundle, other)
    engine_folder(bundle, ORIN).rename(engine_folder(bundle, other))  # copied by hand
    with pytest.raises(
        EngineError,
        match=r"holds engines for .*TensorRT 10\.3\.0, .* but this is .*TensorRT 10\.7\.0, .*: run",
    ):
        find_engines(bundle, other)


def test_engines_of_another_graph_are_refused(bundle: Bundle, plan: EnginePlan) -> None:
    folder = build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), plan)).folder
    files = bundle.manifest.files
    data = "onnx/decoder_model_merged.onnx_data"  # the weights alone: the graph's own file is the same
    changed = replace(bundle.manifest, files=files | {data: FileInfo(files[data].bytes, "1" * 64)})
    with pytest.raises(EngineError, match=r"the bundle's decoder_model_portable has changed since .*: run"):
        find_engines(replace(bundle, manifest=changed), ORIN)
    (folder / "embed_tokens.engine").write_bytes(b"cut")
    with pytest.raises(
        EngineError, match=r"embed_tokens.engine is absent or has another size than engines.json"
    ):
        find_engines(bundle, ORIN)


def test_an_engine_that_was_not_built(bundle: Bundle, plan: EnginePlan) -> None:
    made = build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), plan))
    again = (
        f"run `python -m runtime.engine {bundle.path} --max-images 2 --max-prompt 40 --max-new-tokens 10 "
        "--workspace 256MiB --unpruned`"
    )
    with pytest.raises(EngineError, match=f"has no engine of vision_encoder, only of .*: {again}$"):
        made.path(contract.VISION_ENCODER)
    with pytest.raises(EngineError, match=f": {again}$"):  # what `runtime.check` meets
        find_engine(bundle.graph(contract.VISION_ENCODER), ORIN)
    with pytest.raises(EngineError, match="has no engine of decoder_model_merged, only of"):
        find_engine(bundle.graph(contract.DECODER), ORIN)
    with pytest.raises(EngineError, match="is no graph of the bundle"):
        find_engine(bundle.path / "onnx/other.onnx", ORIN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"engines\.json cannot be read .*: run"),
        ("[]", r"engines\.json cannot be read .*: run"),
        ('{"format": 2}', r"engines\.json has format 2, expected 1: run"),
        ('{"format": 1, "engines": {}}', r"engines\.json cannot be read \(identity is None.*: run"),
    ],
)
def test_a_damaged_record_is_refused(text: str, message: str, bundle: Bundle, plan: EnginePlan) -> None:
    folder = build_engines(bundle, ORIN, EngineBuilder(fake_tensorrt(), plan)).folder
    (folder / RECORD).write_text(text)
    with pytest.raises(EngineError, match=message):
        find_engines(bundle, ORIN)


def test_engines_of_trtexec_are_taken_up(bundle: Bundle, plan: EnginePlan) -> None:
    folder = engine_folder(bundle, ORIN)
    folder.mkdir(parents=True)
    for graph in plan.graphs[1:]:
        (folder / f"{graph.graph}.engine").write_bytes(b"by trtexec" + bytes(2048))
    with pytest.raises(
        EngineError, match=r"there is no engine .*vision_encoder_fopru\.engine: run its trtexec"
    ):
        record_engines(bundle, ORIN, plan)
    (folder / f"{plan.graphs[0].graph}.engine").write_bytes(b"by trtexec" + bytes(2048))
    assert record_engines(bundle, ORIN, plan) == find_engines(bundle, ORIN)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (b"", "is no engine, it has 0 bytes: run its trtexec command first, which `python -m runtime.engine"),
        (bytes(1023), "is no engine, it has 1023 bytes"),
        (b"&&&& RUNNING TensorRT.trtexec\n" * 99, "is no engine, but text: run its trtexec"),
        (b'{"layers": ["one"]}' * 99, "is no engine, but text"),
        (None, r"embed_tokens\.engine is no engine, but begins like an ONNX graph: run its trtexec"),
        ("folder", r"there is no engine .*embed_tokens\.engine: run its trtexec"),
    ],
)
def test_what_is_certainly_no_engine_is_not_taken_up(
    wrong: bytes | str | None, message: str, bundle: Bundle, plan: EnginePlan
) -> None:
    folder = engine_folder(bundle, ORIN)
    folder.mkdir(parents=True)
    for graph in plan.graphs:
        (folder / f"{graph.graph}.engine").write_bytes(b"vtrt" + bytes(2048))
    place = folder / "embed_tokens.engine"
    if wrong == "folder":
        place.unlink()
        place.mkdir()
    else:
        graph_file = bundle.graph("vision_encoder_fopru").read_bytes()  # larger than 1 KiB
        place.write_bytes(graph_file if wrong is None else wrong)
    with pytest.raises(EngineError, match=message):
        record_engines(bundle, ORIN, plan)
    assert not (folder / RECORD).exists()


def test_the_command_that_builds_has_all_limits() -> None:
    limits = Limits(3, 40, 1_000_000, 0.25, 1 / 3, 900, unpruned=True)
    assert build_command("a b", limits, 512 << 20) == (
        "python -m runtime.engine 'a b' --max-images 3 --max-prompt 40 --max-new-tokens 1000000 --ratio 0.25 "
        "--max-ratio 0.3333333333333333 --max-image-tokens 900 --workspace 512MiB --unpruned"
    )
    assert build_command("b", Limits()) == "python -m runtime.engine b"


@needs_rtx
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "internvl", "smolvlm"])
def test_tensorrt_for_rtx_builds_every_engine(family: str, family_bundle: Bundles, tmp_path: Path) -> None:
    # Parser and builder run without a GPU; SM86 is the nearest that it builds for to Orin's SM87. The first
    # chunk of a prompt has an empty past, which it takes.
    trt = importlib.import_module("tensorrt_rtx")

    def for_sm86(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)

    bundle = load_bundle(shutil.copytree(family_bundle(family), tmp_path / family))
    plan = plan_engines(bundle.manifest, replace(SMALL, unpruned=True, max_ratio=0.5), 256 << 20)
    identity = EngineIdentity("none", 86, str(trt.__version__), None)
    made = build_engines(bundle, identity, EngineBuilder(trt, plan, configure=for_sm86))
    assert record_engines(bundle, identity, plan) == made  # it takes real ones for engines
    assert find_engines(bundle, identity) == made
    assert set(made.files) == {graph.graph for graph in plan.graphs}
    assert min(file.bytes for file in made.files.values()) > 10_000


@needs_rtx
def test_tensorrt_for_rtx_sees_an_empty_past(family_bundle: Bundles) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    graph = family_bundle("qwen2_5_vl") / "onnx/decoder_model_portable.onnx"
    assert parser.parse_from_file(str(graph))
    dims = {"inputs_embeds": (1, 5, 32), "attention_mask": (1, 5), "position_ids": (3, 1, 5)}
    for at in range(network.num_inputs):
        tensor = network.get_input(at)
        if not tensor.is_shape_tensor:
            tensor.shape = dims.get(tensor.name, (1, 0, 2, 8))
    shapes = {network.get_output(at).name: network.get_output(at).shape for at in range(network.num_outputs)}
    assert {tuple(shape) for name, shape in shapes.items() if name != "logits"} == {(1, 5, 2, 8)}
    assert tuple(shapes["logits"])[0::2] == (1, 263)
