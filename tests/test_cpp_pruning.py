"""Counts, selectors, assembly, positions and prompts in C++ and in Python: equal results or equal words."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from runtime.assemble import assemble
from runtime.bundle import Bundle
from runtime.counts import kept_count
from runtime.layouts import LAYOUTS, ImagePlan
from runtime.layouts.stitch import stitched_grid, stitched_rows_kept
from runtime.manifest import (
    AGGREGATIONS,
    GATHERS,
    NEWLINE_POLICIES,
    POSITION_POLICIES,
    ROW_SCOPES,
    SCORE_PATHS,
    Manifest,
    PromptTemplate,
    PruningInfo,
    SpecialTokens,
)
from runtime.plan import Amount, kept_placeholders, newline_policy, plan_pruning, stitched_rows
from runtime.positions import prompt_positions, unpruned_end
from runtime.prompt import Prompter, expand_images
from runtime.request import Request, Turn
from runtime.selectors import SELECTORS, Choice, allowed_selectors, select
from tests.cpp_build import cpp_tool
from tests.cpp_layouts import PUBLISHED, Record, answers, or_error, python_layout, random_layout


@pytest.fixture(scope="module")
def probe() -> Path:
    return cpp_tool("probe_pruning")


def some_plan(draw: random.Random, kinds: list[str]) -> tuple[Record, ImagePlan]:
    """An image as a probe takes it, and its plan."""
    while True:
        record = random_layout(draw.choice(kinds), draw)
        if draw.random() < 0.2:
            record = PUBLISHED[draw.choice(list(PUBLISHED))]
        if record["kind"] not in kinds:
            continue
        height = draw.randint(1, 200)
        width = draw.choice([draw.randint(1, 200), 2 * height, max(1, height // 60)])
        plan = or_error(python_layout(record).plan, height, width)
        if isinstance(plan, ImagePlan) and plan.placeholders < 20000:
            return {"layout": record, "size": [height, width]}, plan


def compare(probe: Path, cases: list[tuple[Record, Any]]) -> int:
    """Number of cases that both runtimes answer without an error."""
    fine = 0
    for (line, wanted), got in zip(cases, answers(probe, [line for line, _ in cases]), strict=True):
        assert got == wanted, line
        fine += not (isinstance(got, dict) and "error" in got)
    return fine


def count_answer(tokens: int, ratio: float) -> list[Any]:
    return [str(Amount(ratio)), kept_count(tokens, ratio)]


def test_kept_counts_and_how_a_ratio_is_written(probe: Path) -> None:
    draw = random.Random(1)
    ratios = [0.3, 0.1, 0.5, 1.0, 1e-7, 5e-324, 1e-4, 0.00012, 1 / 3, 1.0 + 2**-52, 0.0, -0.0, -0.25, 1e16]
    ratios += [1e22, 123456789012345680.0, 1234567890123456.0, 2.0, 100.0, 1.7976931348623157e308]
    ratios += [draw.random() for _ in range(300)] + [draw.uniform(0, 10.0**e) for e in range(-20, 21)]
    cases = []
    for ratio in ratios:
        for tokens in (draw.choice([0, -1, 1, 2]), draw.randint(1, 3000), draw.choice([576, 729, 2**31])):
            wanted = or_error(count_answer, tokens, ratio)
            cases.append(({"op": "count", "tokens": tokens, "ratio": ratio}, wanted))
    # Halves: where floor(n * ratio + 0.5) decides.
    for tokens in range(1, 300):
        ratio = (2 * draw.randint(0, tokens - 1) + 1) / (2 * tokens)
        wanted = count_answer(tokens, ratio)
        cases.append(({"op": "count", "tokens": tokens, "ratio": ratio}, wanted))
    assert compare(probe, cases) > 900


@dataclass(frozen=True)
class Rules:
    """Stands for a manifest."""

    pruning: PruningInfo


def random_rules(draw: random.Random) -> tuple[Record, Manifest]:
    strategy = draw.choice(["rank", "row"])
    default = draw.choice([None, "ratio", "tokens"])
    rules: Record = {
        "strategy": strategy,
        "row_scope": draw.choice(ROW_SCOPES) if strategy == "row" else "tile",
        "newline": draw.choice(NEWLINE_POLICIES),
        "default_ratio": draw.uniform(0.01, 1.0) if default == "ratio" else None,
        "default_tokens": draw.randint(1, 400) if default == "tokens" else None,
    }
    rest: Record = {
        "aggregation": AGGREGATIONS[0],
        "layer": 1,
        "score_path": SCORE_PATHS[0],
        "gather": GATHERS[0],
        "position_ids": POSITION_POLICIES[0],
    }
    return rules, cast("Manifest", Rules(PruningInfo(**rules, **rest)))


def pruning_answer(request: Request, manifest: Manifest, plans: list[ImagePlan]) -> Record:
    plan = plan_pruning(request, manifest, plans)
    kept = [sum(counts) for counts in plan.counts]
    pairs = list(zip(plans, kept, strict=False))
    policies = [newline_policy(own, count, manifest.pruning) for own, count in pairs]
    return {
        "counts": [list(counts) for counts in plan.counts],
        "pruned": plan.pruned,
        "reason": plan.reason,
        "stitched": stitched_rows(request.selector, manifest.pruning),
        "policies": policies,
        "placeholders": [
            kept_placeholders(own, count, 2, policy)
            for (own, count), policy in zip(pairs, policies, strict=True)
        ],
        "grids": [None if own.mosaic is None else list(stitched_grid(own)) for own, _ in pairs],
    }


def test_plans_of_random_requests(probe: Path) -> None:
    draw = random.Random(2)
    cases = []
    for _ in range(2500):
        images = [some_plan(draw, list(LAYOUTS)) for _ in range(draw.choice([0, 1, 1, 1, 2, 3]))]
        plans = [plan for _, plan in images]
        rules, manifest = random_rules(draw)
        most = max([plan.prunable for plan in plans], default=1)
        asked = draw.choice(["ratio", "tokens", "tokens", None])
        request = Request(
            "what?",
            ratio=draw.choice([draw.uniform(0.001, 1.0), 1.0, 0.5]) if asked == "ratio" else None,
            tokens=draw.choice([draw.randint(1, most + 2), draw.randint(-1, 9)])
            if asked == "tokens"
            else None,
            selector=draw.choice(allowed_selectors()),
        )
        line = {
            "op": "plan",
            "images": [image for image, _ in images],
            "pruning": rules,
            "selector": request.selector,
            "ratio": request.ratio,
            "tokens": request.tokens,
        }
        wanted = or_error(pruning_answer, request, manifest, plans)
        cases.append((line, wanted))
    fine = compare(probe, cases)
    assert 1500 < fine < 2400  # some are refused, in the same words


def random_scores(draw: random.Random, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scores of several kinds; float32 holds each exactly, so that JSON carries it."""
    noise = np.random.default_rng(draw.randint(0, 10**6))
    form = draw.random()
    if form < 0.3:
        return noise.integers(0, 4, count).astype(np.float32)  # ties
    if form < 0.4:
        return np.zeros(count, np.float32)
    if form < 0.5:  # sums that depend on their order
        return (noise.standard_normal(count) * 10.0 ** noise.integers(-30, 30, count)).astype(np.float32)
    if form < 0.55:  # sums beyond float32
        return (noise.standard_normal(count) * 3e38).clip(-3.4e38, 3.4e38).astype(np.float32)
    # Few bits differ, as in attention averaged over heads: means tie unless they are summed the same way.
    return (noise.random(count) / count).astype(np.float32)


def chosen(name: str, choice: Choice) -> Any:
    with np.errstate(all="ignore"):
        return or_error(lambda: select(name, choice).tolist())


def test_selectors(probe: Path) -> None:
    draw = random.Random(3)
    cases = []
    for number in range(2500):
        rows, columns = draw.randint(1, 30), draw.choice([draw.randint(1, 30), 1, 8, 24, 129, 300])
        scores = random_scores(draw, rows * columns)
        grid = draw.choice([None, (rows, columns), (rows, columns), (rows, columns)])
        name = draw.choice([*SELECTORS, "row", "random", "graph", "no such"])
        keep = (
            draw.randint(1, rows) * columns
            if name == "row" and number % 8
            else draw.randint(0, scores.size + 1)
        )
        keep = scores.size if name == "none" and number % 2 else keep
        seed = draw.choice([0, 1, 7, draw.getrandbits(32), draw.getrandbits(64), 2**64 - 1])
        choice = Choice(scores, grid, keep, seed)
        line = {
            "op": "select",
            "selector": name,
            "scores": scores.tolist(),
            "grid": grid,
            "keep": keep,
            "seed": str(seed),
        }
        cases.append((line, chosen(name, choice)))
    assert compare(probe, cases) > 1400


def test_scores_that_are_no_numbers(probe: Path) -> None:
    scores = np.ones(6, np.float32)
    scores[4] = np.inf
    wanted = chosen("uniform", Choice(scores, None, 3, 0))
    assert wanted["error"] == "BackendError"
    # JSON has no infinity; 1e300 is one in float32.
    sent = [1.0, 1.0, 1.0, 1.0, 1e300, 1.0]
    line = {"op": "select", "selector": "uniform", "scores": sent, "grid": None, "keep": 3, "seed": "0"}
    assert answers(probe, [line]) == [wanted]


def test_random_subsets_of_every_size(probe: Path) -> None:
    cases = []
    for count in [*range(1, 70), 576, 1000, 65537]:
        keep = max(1, count // 3)
        wanted = chosen("random", Choice(np.zeros(count, np.float32), None, keep, count + 11))
        line = {
            "op": "select",
            "selector": "random",
            "scores": [0] * count,
            "grid": None,
            "keep": keep,
            "seed": str(count + 11),
        }
        cases.append((line, wanted))
    assert compare(probe, cases) == len(cases)


def test_rows_of_stitched_pictures(probe: Path) -> None:
    draw = random.Random(4)
    cases: list[tuple[Record, Any]] = []
    while len(cases) < 600:
        image, plan = some_plan(draw, ["anyres", "split", "aspect"])
        if plan.mosaic is None:
            continue
        rows, columns = stitched_grid(plan)
        scores = [random_scores(draw, unit.tokens) for unit in plan.units]
        keep = draw.randint(1, max(rows, 1)) * columns
        with np.errstate(all="ignore"):
            wanted = [part.tolist() for part in stitched_rows_kept(plan, scores, keep)]
        cases.append(
            ({"op": "stitch", **image, "scores": [own.tolist() for own in scores], "keep": keep}, wanted)
        )
    assert compare(probe, cases) == len(cases)
    assert sum(any(wanted) for _, wanted in cases) > 500


def placed_answer(line: Record, plans: list[ImagePlan]) -> Record:
    kept = [[np.asarray(own, np.int64) for own in image["kept"]] for image in line["images"]]
    images = [
        (plan, assemble(plan, own, line["prefix"], line["newline"]))
        for plan, own in zip(plans, kept, strict=True)
    ]
    plain = np.asarray(line["plain"], np.int64)
    runs = [run for _, assembly in images for run in assembly.runs]
    ids = expand_images(plain, line["image"], runs)
    positions = prompt_positions(plain, line["image"], images, line["policy"], line["axes"])
    return {
        "assemblies": [
            [assembly.places.tolist(), assembly.source.tolist(), list(assembly.runs)]
            for _, assembly in images
        ],
        "ids": ids.tolist(),
        "positions": positions.ids.reshape(-1).tolist(),
        "next": positions.next,
        "length": positions.ids.shape[1],
        "end": unpruned_end(plain.size, plans),
    }


def test_assembly_and_positions_of_random_subsets(probe: Path) -> None:
    draw = random.Random(5)
    cases = []
    for number in range(1200):
        native = number % 4 == 0
        kinds = ["native"] if native else [kind for kind in LAYOUTS if kind != "native"]
        images = [some_plan(draw, kinds) for _ in range(draw.choice([0, 1, 1, 2]))]
        prefix = images[0][0]["layout"].get("prefix_tokens", 0) if images else 0
        images = [image for image in images if image[0]["layout"].get("prefix_tokens", 0) == prefix]
        part = draw.choice([0.0, 0.02, 0.3, 1.0])
        sent = []
        for image, plan in images:
            kept = [
                [int(place) for place in unit.valid_indices if draw.random() < part] for unit in plan.units
            ]
            sent.append({**image, "kept": kept})
        plans = [plan for _, plan in images]
        marks = sum(len(plan.runs) for plan in plans) + (number % 50 == 0)
        plain = [5] * marks + [draw.randint(6, 99) for _ in range(draw.randint(0, 12))]
        draw.shuffle(plain)
        line = {
            "op": "place",
            "images": sent,
            "prefix": prefix,
            "newline": draw.choice(NEWLINE_POLICIES),
            "plain": plain,
            "image": 5,
            "policy": draw.choice(POSITION_POLICIES),
            "axes": 3 if native else 1,
        }
        cases.append((line, or_error(placed_answer, line, plans)))
    assert compare(probe, cases) > 1000


def test_kept_places_outside_a_unit_are_refused(probe: Path) -> None:
    image = {"layout": PUBLISHED["internvl"], "size": [448, 448]}
    line = {"op": "place", "prefix": 0, "newline": "keep_all", "plain": [5], "image": 5, "policy": "renumber"}
    for kept, message in (
        ([[0, 256]], "token 256 is to be kept, but this part of the image has 256: give 0..255"),
        ([[-1]], "token -1 is to be kept"),
        ([[], []], "kept tokens of 2 parts for an image that is seen in 1"),
    ):
        (got,) = answers(probe, [{**line, "axes": 1, "images": [{**image, "kept": kept}]}])
        assert got["error"] == "RequestError"
        assert message in got["message"]


TEMPLATES = [
    PromptTemplate("USER: {images}\n{prompt} ASSISTANT:", None, "<image>", True),
    PromptTemplate(
        "USER: {images}\n{prompt} ASSISTANT:",
        "</s>USER: {images}{prompt} ASSISTANT:",
        "[<image>]\n",
        True,
        " ASSISTANT:",
        " ASSISTANT: {answer}",
    ),
    PromptTemplate(
        "<|u|>{prompt}{images}<e>\n<|a|>",
        "<e>\n<|u|>{prompt}{images}<e>\n<|a|>",
        "<image>",
        False,
        "<|a|>",
        "<|A|>é{answer}",
        "only {prompt}<|a|>",
        "then {prompt}<|a|>",
    ),
]
TEXTS = [
    "What is this?",
    "",
    "{images} and {prompt} and {answer}",
    "naïve 日本 🎉",
    "a <image> b",
    "<ima" + "ge> {image}",
    "line\nline\t'\"",
]


@dataclass(frozen=True)
class ToyManifest:
    """Stands for a manifest."""

    prompt: PromptTemplate
    tokens: SpecialTokens


@dataclass(frozen=True)
class ToyBundle:
    """Stands for a bundle of which only the prompt's form and the tokenizer are looked at."""

    manifest: ToyManifest
    path: Path

    def file(self, name: str) -> Path:
        return self.path / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    model = {"type": "WordLevel", "vocab": {"<image>": 0, "a": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    return path


def python_prompter(template: PromptTemplate, image: int, folder: Path) -> Prompter:
    manifest = ToyManifest(template, SpecialTokens(image, (1,), None, None))
    return Prompter(cast("Bundle", ToyBundle(manifest, folder)))


def prompt_line(template: PromptTemplate, image: int, turns: list[tuple[str, int, str]]) -> Record:
    return {
        "op": "prompt",
        "template": dataclasses.asdict(template),
        "image": image,
        "texts": {"0": "<image>", "1": "a"},
        "turns": turns,
        "images": [],
    }


def test_prompts(probe: Path, folder: Path) -> None:
    draw = random.Random(6)
    cases = []
    for _ in range(600):
        template = draw.choice(TEMPLATES)
        prompter = python_prompter(template, 0, folder)
        turns = [
            (draw.choice(TEXTS[:4]), draw.choice([0, 1, 2]), draw.choice(TEXTS[:4]))
            for _ in range(draw.randint(1, 3))
        ]
        if draw.random() < 0.1:
            turns[0] = (draw.choice(TEXTS), turns[0][1], draw.choice(TEXTS) if len(turns) > 1 else "")
        turns[-1] = (turns[-1][0], turns[-1][1], "")
        images = [some_plan(draw, list(LAYOUTS)) for _ in range(sum(count for _, count, _ in turns))]
        pictures = [("picture",) * count for _, count, _ in turns]
        request = Request(
            turns[-1][0],
            pictures[-1],
            history=tuple(
                Turn(prompt, own, answer)
                for (prompt, _, answer), own in zip(turns[:-1], pictures[:-1], strict=True)
            ),
        )
        plans = [plan for _, plan in images]
        wanted = or_error(prompter.render, request, plans)
        line = prompt_line(template, 0, turns) | {"images": [image for image, _ in images]}
        cases.append((line, wanted))
    assert compare(probe, cases) > 350


def test_templates_that_do_not_fit_the_tokenizer_are_refused(probe: Path, folder: Path) -> None:
    twice = dataclasses.replace(TEMPLATES[0], image="<image>'<image>")
    none = dataclasses.replace(TEMPLATES[0], image='"no"\n')
    turns = [("hello", 0, "")]
    cases = [
        (
            prompt_line(template, 0, turns),
            or_error(python_prompter, template, 0, folder),
        )
        for template in (twice, none)
    ]
    assert compare(probe, cases) == 0
    (got,) = answers(probe, [prompt_line(TEMPLATES[0], 7, turns)])
    assert got["error"] == "BundleError"
    assert "tokens.image is 7, which tokenizer.json does not have: rebuild the bundle" in got["message"]
    (got,) = answers(probe, [prompt_line(TEMPLATES[0], 0, [("hello", 2, "")])])
    assert got["message"] == "the turns have 2 images, but 0 were given: give one for each"
