"""Options of ONNX Runtime's TensorRT provider, planned in C++ from a manifest, against `runtime/`."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from runtime.backends.ort_tensorrt import PLAN_FILE, WORKSPACE, _plan_of, _planned, provider_options
from runtime.bundle import load_bundle
from runtime.decode import encode
from runtime.errors import EngineError, FopruError
from runtime.layouts import LAYOUTS
from runtime.manifest import Manifest
from runtime.tensorrt.plan import Limits, plan_engines
from tests.cpp_build import cpp_tool
from tests.cpp_layouts import PUBLISHED, python_layout, random_layout
from tests.cpp_probe import LineProbe

DATA = Path(__file__).parent / "data"
FROZEN = ("bundle_v1", "bundle_v2", "bundle_v2_tiles", "bundle_v3", "bundle_v3_q4")
FAMILIES = ("llava", "llava_next", "smolvlm", "qwen2_5_vl", "internvl")
Record = dict[str, Any]


@pytest.fixture(scope="module")
def probe() -> Iterator[LineProbe]:
    with LineProbe(cpp_tool("probe_ort")) as made:
        yield made


@pytest.fixture
def root_of(family_bundle: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda name: DATA / name if name in FROZEN else family_bundle(name)


def random_limits(rng: random.Random) -> Limits:
    max_ratio = rng.choice((1.0, 0.05, 0.3, round(rng.uniform(0.05, 1), 3)))
    return Limits(
        max_images=rng.choice((1, 2, 4, 9)),
        max_prompt=rng.choice((1, 7, 512, 5000)),
        max_new_tokens=rng.choice((1, 2, 256, 3001)),
        ratio=rng.choice((None, max_ratio, max_ratio * rng.uniform(0.01, 1))),
        max_ratio=max_ratio,
        max_image_tokens=rng.choice((1, 2, 30, 60, 1280, 16384)),
        unpruned=rng.random() < 0.5,
    )


def python_answer(record: Record, limits: Limits, workspace: int) -> Record:
    """Options of every graph, or the error's sentence."""
    try:
        plan = plan_engines(Manifest.from_json(record), limits, workspace)
        return {graph.file: provider_options(graph, workspace, Path("/e")) for graph in plan.graphs}
    except FopruError as error:
        return {"error": str(error)}


def both(probe: LineProbe, record: Record, limits: Limits, file: Path) -> Record:
    """The answer, which is that of both."""
    file.write_text(json.dumps(record))
    workspace = WORKSPACE + limits.max_prompt
    mine = python_answer(record, limits, workspace)
    theirs = probe.ask(do="plan", manifest=str(file), limits=asdict(limits), workspace=workspace)
    theirs.pop("kind", None)
    assert theirs == mine, limits
    assert list(theirs) == list(mine)
    return mine


def manifest_of(root: Path) -> Record:
    return encode(load_bundle(root, verify=False).manifest)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*FROZEN, *FAMILIES])
def test_plans_of_every_family_on_random_limits(
    probe: LineProbe, root_of: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    rng, record, answers = random.Random(name), manifest_of(root_of(name)), []
    answers.append(both(probe, record, Limits(unpruned=True), tmp_path / "bundle.json"))
    for _ in range(15):
        pruning = record["pruning"]
        pruning["default_ratio"], pruning["default_tokens"] = rng.choice(
            ((None, None), (0.3, None), (None, 7))
        )
        if "qwen" not in name:
            pruning["strategy"] = rng.choice(("rank", "row"))
        record["decoder"]["max_positions"] = rng.choice((1, 40, 512, 32768))
        answers.append(both(probe, record, random_limits(rng), tmp_path / "bundle.json"))
    if name in ("bundle_v3", *FAMILIES):
        assert sum("error" not in answer for answer in answers) > 5
    else:  # no decoder that TensorRT runs
        assert all("but TensorRT needs" in answer["error"] for answer in answers)


def planned_layout(record: Record, layout: Record) -> Record:
    """A manifest with another layout, whose pruned encoder has the inputs that it asks for."""
    base: Record = json.loads(json.dumps(record))
    base["layout"], made = layout, python_layout(layout)
    base["decoder"]["position_axes"] = made.position_axes
    base["pruning"]["position_ids"] = "original" if made.position_axes > 1 else "renumber"
    if made.has_newlines:
        base["constants"]["image_newline"] = {
            "file": "onnx/embed_tokens.onnx",
            "shape": [base["decoder"]["hidden_size"]],
        }
    inputs: list[Record] = [{"name": "pixel_values", "dtype": "float32", "shape": list(made.pixel_shape)}]
    inputs.append({"name": "num_keep", "dtype": "int64", "shape": [1]})
    if made.masked:
        inputs.append({"name": "token_mask", "dtype": "bool", "shape": ["units", made.unit_tokens]})
    for each in made.extra_inputs:
        inputs.append({"name": each.name, "dtype": each.dtype, "shape": list(each.shape)})
    base["graphs"]["vision_encoder_fopru"]["inputs"] = inputs
    return base


def agreed(probe: LineProbe, layout: Record, rng: random.Random, file: Path) -> int:
    """How many of a few random limits made a plan."""
    record, made = planned_layout(manifest_of(DATA / "bundle_v3"), layout), 0
    for _ in range(3):
        record["pruning"]["strategy"] = rng.choice(("rank", "row"))
        made += "error" not in both(probe, record, random_limits(rng), file)
    return made


@pytest.mark.parametrize("name", PUBLISHED)
def test_plans_of_published_layouts(probe: LineProbe, name: str, tmp_path: Path) -> None:
    assert agreed(probe, PUBLISHED[name], random.Random(name), tmp_path / "bundle.json") > 0


@pytest.mark.parametrize("kind", LAYOUTS)
def test_plans_of_random_layouts(probe: LineProbe, kind: str, tmp_path: Path) -> None:
    rng, file = random.Random(kind), tmp_path / "bundle.json"
    made = sum(agreed(probe, random_layout(kind, rng), rng, file) for _ in range(12))
    assert made > 10


def of_bundle(probe: LineProbe, root: Path, graph: str) -> tuple[Record, Record]:
    """(C++, Python): options of a graph of a bundle, or the sentence."""
    file, folder = root / "onnx" / graph, Path("/e")
    theirs = probe.ask(do="options", root=str(root), file=str(file), folder=str(folder))
    theirs.pop("kind", None)
    try:
        plan = _plan_of(root)
        return theirs, provider_options(_planned(plan, root, file), plan.workspace, folder)
    except FopruError as error:
        return theirs, {"error": str(error)}


@pytest.fixture
def root(toy_bundle_dir: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(toy_bundle_dir, tmp_path / "bundle"))
    (copy / PLAN_FILE).parent.mkdir(parents=True)
    return copy


GRAPHS = ("embed_tokens", "vision_encoder", "vision_encoder_fopru", "decoder_model_portable")


def test_the_default_plan_of_a_bundle(probe: LineProbe, root: Path) -> None:
    for graph in GRAPHS:
        theirs, mine = of_bundle(probe, root, f"{graph}.onnx")
        assert theirs == mine
        assert theirs["trt_max_workspace_size"] == str(WORKSPACE)
    theirs, mine = of_bundle(probe, root, "decoder_model_merged.onnx")
    assert theirs == mine
    assert "has no decoder_model_merged.onnx, only onnx/vision_encoder_fopru.onnx" in theirs["error"]


def test_a_plan_in_the_folder_comes_first(probe: LineProbe, root: Path) -> None:
    limits = Limits(max_images=1, max_prompt=7, ratio=0.2)
    plan = plan_engines(load_bundle(root).manifest, limits, 1 << 20)
    (root / PLAN_FILE).write_text(json.dumps(plan.to_dict()))
    for graph in GRAPHS:
        theirs, mine = of_bundle(probe, root, f"{graph}.onnx")
        assert theirs == mine
    assert theirs["trt_max_workspace_size"] == str(1 << 20)
    theirs, mine = of_bundle(probe, root, "vision_encoder.onnx")  # not --unpruned
    assert theirs == mine
    assert "with --unpruned, to engines/ort-tensorrt/plan.json, or remove that file" in theirs["error"]


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.pop("graphs"),
        lambda plan: plan.update(graphs=3),
        lambda plan: plan.update(odd=1),
        lambda plan: plan["graphs"][0].pop("file"),
        lambda plan: plan["graphs"][0]["profiles"][0].update(pixel_values=7),
        lambda plan: plan["graphs"][0]["profiles"][0]["pixel_values"].update(values=1),
        lambda plan: plan["graphs"][0]["profiles"][0]["pixel_values"].update(minimum=[1.5]),
        lambda plan: plan["graphs"][0]["profiles"][0]["num_keep"].update(minimum=[-1]),
        lambda plan: plan["graphs"][0]["profiles"][0]["num_keep"].update(optimum=[1, 2]),
        lambda plan: plan["graphs"][0]["profiles"][0]["num_keep"].update(maximum=[0]),
        lambda plan: plan["limits"].update(max_images=0),
        lambda plan: plan["limits"].update(max_ratio=2),
        lambda plan: plan["limits"].update(ratio=0),
        lambda plan: plan["limits"].update(ratio=1, max_ratio=0.25),
        lambda plan: plan["visual"].pop("columns"),
        lambda plan: plan["visual"].update(windows="none"),
    ],
)
def test_the_same_refusals_of_a_plan(probe: LineProbe, root: Path, change: Callable[[Record], None]) -> None:
    plan = plan_engines(load_bundle(root).manifest, Limits(), 1 << 20).to_dict()
    change(plan)
    (root / PLAN_FILE).write_text(json.dumps(plan))
    theirs, mine = of_bundle(probe, root, "embed_tokens.onnx")
    assert theirs == mine
    assert "error" in theirs


@pytest.mark.parametrize("text", ["{", "", "\x00", "[" * 2000])
def test_a_plan_that_is_no_json(probe: LineProbe, root: Path, text: str) -> None:
    """What is wrong with the JSON is said in the words of each parser."""
    (root / PLAN_FILE).write_text(text)
    theirs, _ = of_bundle(probe, root, "embed_tokens.onnx") if len(text) < 2000 else (ask(probe, root), {})
    assert theirs["error"].startswith(f"{root / PLAN_FILE} cannot be read (")
    assert theirs["error"].endswith("): write a plan there, or remove it for the default one")


def ask(probe: LineProbe, root: Path) -> Record:
    return probe.ask(do="options", root=str(root), file=str(root / "onnx/embed_tokens.onnx"), folder="/e")


def test_profiles_that_are_not_alike(probe: LineProbe, root: Path) -> None:
    plan = plan_engines(load_bundle(root).manifest, Limits(), 1 << 20).to_dict()
    embed = next(each for each in plan["graphs"] if each["graph"] == "embed_tokens")
    one = {"minimum": [1], "optimum": [1], "maximum": [1]}
    for profiles in ([], [{}, {"input_ids": one}], [{"input_ids": one | {"minimum": [1, 1]}}, {}]):
        embed["profiles"] = profiles
        (root / PLAN_FILE).write_text(json.dumps(plan))
        if profiles and not profiles[1]:
            assert "but minimum <= optimum <= maximum holds" in ask(probe, root)["error"]
        else:
            assert "has profiles that are not alike" in ask(probe, root)["error"]


def test_wrong_limits_are_refused_alike(probe: LineProbe, root: Path, tmp_path: Path) -> None:
    record, file = manifest_of(root), tmp_path / "manifest.json"
    file.write_text(json.dumps(record))
    good = asdict(Limits())
    for wrong in (
        {"max_images": 0},
        {"max_prompt": -1},
        {"max_ratio": 1.5},
        {"ratio": 0.5, "max_ratio": 0.3},
    ):
        with pytest.raises(EngineError) as error:
            Limits(**(good | wrong))
        answer = probe.ask(do="plan", manifest=str(file), limits=good | wrong, workspace=1)
        assert answer["error"] == str(error.value)
    odd = json.loads(json.dumps(record))
    odd["layout"]["grid"], odd["layout"]["tokens"] = [1, 4096], 4096
    odd["pruning"]["strategy"] = "row"
    assert "a grid row has 4096 tokens" in both(probe, odd, Limits(), file)["error"]
