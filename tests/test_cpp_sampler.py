"""The C++ sampler draws the token that runtime/sampling.py draws, for the same seed and logits."""

from __future__ import annotations

import itertools
import json
import subprocess
from typing import Any, NamedTuple

import numpy as np
import pytest

from runtime.errors import BackendError
from runtime.request import Request
from runtime.sampling import Sampler
from tests.cpp_build import cpp_tool

GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
RULES = [
    {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": penalty,
    }
    for temperature, top_k, top_p, min_p, penalty in itertools.product(
        (0.05, 0.7, 1.0, 30.0), (0, 1, 3, 40), (1.0, 0.999, 0.6, 1e-6), (0.0, 0.02, 1.0), (1.0, 1.3)
    )
]


class Case(NamedTuple):
    logits: np.ndarray  # float32 [draws, V]
    rules: dict[str, Any]
    seed: int = 0
    prompt: tuple[int, ...] = ()


def theirs(cases: list[Case]) -> list[Any]:
    """What C++ draws."""
    stream = b""
    for case in cases:
        head = {
            **GREEDY,
            **case.rules,
            "seed": str(case.seed),
            "prompt": case.prompt,
            "draws": len(case.logits),
            "vocabulary": case.logits.shape[1],
        }
        stream += json.dumps(head).encode() + b"\n" + case.logits.astype("<f4").tobytes()
    done = subprocess.run([cpp_tool("probe_sampler")], input=stream, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def ours(case: Case) -> list[int]:
    request = Request("?", seed=case.seed, **{**GREEDY, **case.rules})
    sampler = Sampler(request, case.logits.shape[1], np.array(case.prompt, np.int64))
    return [sampler.pick(logits) for logits in case.logits]


def assert_same(cases: list[Case]) -> None:
    for case, drawn in zip(cases, theirs(cases), strict=True):
        assert drawn == ours(case), (case.rules, case.seed, case.logits.shape)


@pytest.mark.parametrize("kind", ["smooth", "ties", "far", "masked"])
def test_draws_are_those_of_python(kind: str) -> None:
    random = np.random.default_rng(["smooth", "ties", "far", "masked"].index(kind))
    cases = []
    for number, rules in enumerate(RULES):
        size = int(random.choice([2, 7, 8, 9, 127, 128, 129, 1000, 5003]))
        logits = random.normal(0, 3, (6, size)).astype(np.float32)
        if kind == "ties":
            logits = np.round(logits)
        if kind == "far":
            logits *= 1e4
        if kind == "masked":
            logits[random.random(logits.shape) < 0.7] = -np.inf
            logits[:, 0] = 0.5
        seed = int(random.integers(2**63)) * (number % 2) * 2 + number
        cases.append(Case(logits, rules, seed, tuple(random.integers(0, 2 * size, 5).tolist())))
    assert_same(cases)


@pytest.mark.parametrize("size", [32_000, 151_936])
def test_large_vocabularies(size: int) -> None:
    random = np.random.default_rng(size)
    chosen = [RULES[int(place)] for place in random.integers(0, len(RULES), 12)]
    flat = [
        {"temperature": 1.0, "top_p": 0.9999999},
        {"temperature": 1.0},
        {"temperature": 5.0, "min_p": 1e-4},
    ]
    assert_same(
        [
            Case(random.normal(0, 2, (2, size)).astype(np.float32), rules, seed, (1, size - 1))
            for seed, rules in enumerate([*chosen, *flat, GREEDY])
        ]
    )


@pytest.mark.parametrize("order", ["ascending", "descending", "halves"])
def test_the_largest_scores_are_found_in_any_order(order: str) -> None:
    """All that a limit lets through, where scores pass it at each place, at none, or in ties of it."""
    cases = []
    for size in (31, 32, 33, 64, 700, 5003):
        logits = np.linspace(-9, 9, size, dtype=np.float32)
        if order == "descending":
            logits = logits[::-1]
        if order == "halves":
            logits = np.round(np.roll(logits, size // 2))
        for rules in ({"top_k": 2}, {"top_k": 30}, {"min_p": 0.01}, {"top_k": 9, "top_p": 0.8}):
            cases.append(Case(np.tile(logits, (5, 1)), {"temperature": 2.0, **rules}, size))
    assert_same(cases)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_bad_logit_anywhere_is_refused(bad: float, temperature: float) -> None:
    cases = []
    for place in [*range(70), 1023, 1024, 1087, 1088, 1099]:
        logits = np.full((1, 1100), -np.inf, np.float32)
        logits[0, 500], logits[0, place] = 1.0, bad
        cases.append(Case(logits, {**GREEDY, "temperature": temperature}))
        with pytest.raises(BackendError):
            ours(cases[-1])
    for answer in theirs(cases):
        assert "logits that are not numbers" in answer["message"]


def test_all_logits_alike_are_added_up_as_numpy_does() -> None:
    """A nucleus of equal weights ends where a sum reaches a part of another: every rounding counts."""
    cases = []
    for size in (3, 8, 100, 129, 1000, 4097):
        for part in (0.1, 0.3, 1 / 3, 0.7, 0.9):
            cases.append(Case(np.ones((4, size), np.float32), {"temperature": 1.0, "top_p": part}, size))
    assert_same(cases)


def test_a_penalty_is_computed_in_float32() -> None:
    random = np.random.default_rng(5)
    cases = [
        Case(
            np.round(random.normal(0, 9, (20, 40)), 2).astype(np.float32),
            {"repetition_penalty": penalty},
            0,
            (3, 9),
        )
        for penalty in (0.01, 0.9, 1.1, 1.2, 100.0)
    ]
    assert_same(cases)


def test_logits_that_are_no_numbers_are_refused() -> None:
    logits = np.zeros((1, 4), np.float32)
    logits[0, 2] = np.nan
    (answer,) = theirs([Case(logits, GREEDY)])
    with pytest.raises(BackendError) as error:
        ours(Case(logits, GREEDY))
    words = str(error.value).replace("`python -m runtime.check`", "`fopru check`")
    assert answer == {"error": "BackendError", "message": words}
