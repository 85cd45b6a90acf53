"""Sampling against the logits processors of transformers, and its draws."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runtime.errors import BackendError
from runtime.request import Request
from runtime.sampling import Sampler, nucleus

NOTHING = np.empty(0, np.int64)
SETTINGS = [
    {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.3, 1.0, 2.5), (0, 1, 7, 400, 10_000), (1.0, 0.999, 0.6, 1e-6), (0.0, 0.02, 0.5, 1.0)
    )
]


def sampler_for(size: int, prompt: np.ndarray = NOTHING, **rules: float) -> Sampler:
    return Sampler(Request("?", **rules), size, prompt)  # type: ignore[arg-type]


def theirs(logits: np.ndarray, prompt: np.ndarray, rules: dict[str, float]) -> np.ndarray:
    """Probabilities [V] from the processors that `generate` makes of the same settings, in its order.

    In float64 behind the penalty: `generate` rounds its sums to float32, which decides ties at random.
    """
    penalty = rules.get("repetition_penalty", 1.0)
    ids = torch.from_numpy(prompt)[None]
    scores = torch.from_numpy(logits.copy())[None]
    if penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(rules["temperature"])])
    if rules.get("top_k"):
        warpers.append(TopKLogitsWarper(int(rules["top_k"])))
    if rules.get("top_p", 1.0) < 1.0:
        warpers.append(TopPLogitsWarper(rules["top_p"]))
    if rules.get("min_p"):
        warpers.append(MinPLogitsWarper(rules["min_p"]))
    return torch.softmax(warpers(ids, scores.double()), dim=-1)[0].numpy()


def ours(logits: np.ndarray, prompt: np.ndarray, rules: dict[str, float]) -> np.ndarray:
    before = logits.copy()
    ids, chances = sampler_for(logits.size, prompt, **rules).distribution(logits)
    np.testing.assert_array_equal(logits, before)
    assert len(set(ids.tolist())) == ids.size
    whole = np.zeros(logits.size)
    whole[ids] = chances
    return whole


def make_logits(form: str, size: int = 500) -> np.ndarray:
    rng = np.random.default_rng(3)
    return {
        "random": rng.normal(0, 3, size),
        "peaked": rng.normal(0, 12, size) + 40,
        "ties": rng.integers(-5, 3, size).astype(np.float64),
        "excluded": np.where(rng.random(size) < 0.4, -np.inf, rng.normal(0, 3, size)),
    }[form].astype(np.float32)


@pytest.mark.parametrize("form", ["random", "peaked", "excluded"])
def test_distribution_is_that_of_transformers(form: str) -> None:
    logits = make_logits(form)
    for rules in SETTINGS:
        # The same float64 formulas, with sums in another order.
        np.testing.assert_allclose(
            ours(logits, NOTHING, rules),
            theirs(logits, NOTHING, rules),
            rtol=1e-9,
            atol=0,
            err_msg=str(rules),
        )


def test_distribution_of_ties_is_that_of_transformers() -> None:
    """Which of equal tokens a nucleus keeps is left open there; how many, and all else, is not."""
    logits = make_logits("ties")
    for rules in SETTINGS:
        mine, other = ours(logits, NOTHING, rules), theirs(logits, NOTHING, rules)
        if rules["top_p"] == 1.0:
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=0, err_msg=str(rules))  # as above
        np.testing.assert_allclose(np.sort(mine), np.sort(other), rtol=1e-9, atol=0, err_msg=str(rules))


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = make_logits("random")
    logits[7] = 0.0
    # Repeated ids, and one beyond the logits, as the image placeholder of some checkpoints is.
    prompt = np.array([3, 3, 7, 20, int(logits.argmax()), 20, 499, 500, 70_000], np.int64)
    for rules in SETTINGS:
        rules = {**rules, "repetition_penalty": penalty}
        # The same float32 penalty, then float64 sums in another order.
        np.testing.assert_allclose(
            ours(logits, prompt, rules), theirs(logits, prompt, rules), rtol=1e-9, atol=0, err_msg=str(rules)
        )


@pytest.mark.parametrize("penalty", [1.0, 0.8, 1.3])
def test_greedy_steps_with_a_penalty_are_those_of_transformers(penalty: float) -> None:
    rng = np.random.default_rng(5)
    prompt = rng.integers(0, 50, 12)
    sampler = sampler_for(50, prompt, repetition_penalty=penalty)
    ids = torch.from_numpy(prompt)[None]
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    changed = 0
    for _ in range(200):
        logits = rng.normal(0, 2, 50).astype(np.float32)
        expected = int(processor(ids, torch.from_numpy(logits.copy())[None]).argmax())
        changed += expected != int(logits.argmax())
        assert sampler.pick(logits) == expected
        ids = torch.cat([ids, torch.tensor([[expected]])], dim=1)
    assert (changed > 0) == (penalty != 1.0)


def test_greedy_takes_the_first_of_equals_and_no_other_rule() -> None:
    rules = {"top_k": 1, "top_p": 0.1, "min_p": 1.0}
    assert sampler_for(3, **rules).pick(np.array([1.0, 3.0, 3.0], np.float32)) == 1


@pytest.mark.parametrize("form", ["flat", "peaked", "ties"])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999, 0.999999999999])
def test_nucleus_of_a_large_vocabulary_equals_a_whole_sort(form: str, top_p: float) -> None:
    rng = np.random.default_rng(1)
    weights = {
        "flat": np.ones(20_000),
        "peaked": np.exp(rng.normal(0, 8, 20_000)),
        "ties": np.exp(rng.integers(0, 4, 20_000).astype(np.float64)),
    }[form]
    order = np.argsort(-weights, kind="stable")
    size = int(np.searchsorted(np.cumsum(weights[order]), top_p * weights.sum())) + 1
    np.testing.assert_array_equal(nucleus(weights, top_p), order[:size])


@pytest.mark.parametrize(("top_p", "kept"), [(0.9, [2, 0, 3]), (0.5, [2]), (0.51, [2, 0]), (1e-9, [2])])
def test_nucleus_is_the_smallest_set(top_p: float, kept: list[int]) -> None:
    assert nucleus(np.array([0.25, 0.0625, 0.5, 0.1875]), top_p).tolist() == kept


def test_rules_that_keep_few_tokens_sort_and_weigh_few(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real_sort, real_exp = np.argsort, np.exp

    def sorting(values: np.ndarray, **rest: str) -> np.ndarray:
        sizes.append(values.size)
        return real_sort(values, **rest)  # type: ignore[call-overload]

    def weighing(values: np.ndarray, **rest: np.ndarray) -> np.ndarray:
        sizes.append(values.size)
        return real_exp(values, **rest)  # type: ignore[call-overload]

    logits = np.random.default_rng(1).normal(0, 8, 100_000).astype(np.float32)
    monkeypatch.setattr(np, "argsort", sorting)
    monkeypatch.setattr(np, "exp", weighing)
    sampler_for(100_000, temperature=1.0, top_p=0.5).pick(logits)
    assert sizes.pop() < 1000
    assert sizes == [100_000]  # the sum needs all weights
    for rules in ({"top_k": 40, "top_p": 0.9}, {"min_p": 0.05}):
        sizes.clear()
        sampler_for(100_000, temperature=1.0, **rules).pick(logits)
        assert max(sizes) <= 40


@pytest.mark.parametrize(
    "rules",
    [
        {"repetition_penalty": 1.2},
        {"temperature": 1.0, "repetition_penalty": 1.2},
        {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 1.0, "min_p": 0.1},
    ],
)
def test_a_token_allocates_nothing_of_the_size_of_the_vocabulary(rules: dict[str, float]) -> None:
    size = 100_000
    logits = np.random.default_rng(1).normal(0, 8, size).astype(np.float32)
    sampler = sampler_for(size, np.arange(100), **rules)
    sampler.pick(logits)
    tracemalloc.start()
    sampler.pick(logits)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size  # not even a byte per entry


def test_draws_have_the_probabilities() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    sampler = sampler_for(3, temperature=1.0)
    counts = np.bincount([sampler.pick(logits) for _ in range(4000)], minlength=3)
    # Five standard deviations of a binomial of 4000 draws: at most 0.04.
    np.testing.assert_allclose(counts / 4000, [0.6, 0.3, 0.1], rtol=0, atol=0.04)


def test_draws_follow_the_seed() -> None:
    logits = make_logits("random")
    rules = {
        "temperature": 1.5,
        "top_k": 100,
        "top_p": 0.95,
        "min_p": 0.001,
        "repetition_penalty": 1.2,
    }

    def drawn(seed: int) -> list[int]:
        sampler = sampler_for(logits.size, np.arange(9), seed=seed, **rules)
        return [sampler.pick(logits) for _ in range(30)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_largest_draw_takes_the_last_token_with_a_weight() -> None:
    class Largest:
        def random(self) -> float:
            return float(np.nextafter(1.0, 0.0))

    rng = np.random.default_rng(0)
    sampler = sampler_for(8, temperature=1.0)
    sampler._random = Largest()  # type: ignore[assignment]
    for _ in range(1000):  # sums of all kinds, times the draw
        logits = rng.normal(0, 2, 8).astype(np.float32)
        logits[6:] = -np.inf
        assert sampler.pick(logits) == 5


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-8])
@pytest.mark.parametrize("rules", [{}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_k": 3}])
def test_a_tiny_temperature_is_greedy(temperature: float, rules: dict[str, float]) -> None:
    logits = np.array([1.0, 30.0, 29.9999, -50.0], np.float32)
    sampler = sampler_for(4, temperature=temperature, **rules)
    assert {sampler.pick(logits) for _ in range(20)} == {1}


@pytest.mark.parametrize("rules", [{}, {"top_p": 0.5}, {"min_p": 1e-300}, {"top_k": 3}])
def test_a_huge_temperature_is_flat(rules: dict[str, float]) -> None:
    logits = np.array([1.0, 30.0, -3e38, -50.0], np.float32)
    _, chances = sampler_for(4, temperature=1e300, **rules).distribution(logits)
    assert len(set(chances.tolist())) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf], [np.nan, np.inf]])
def test_logits_that_are_not_numbers(logits: list[float], temperature: float) -> None:
    for penalty in (1.0, 1.1):
        sampler = sampler_for(2, np.arange(2), temperature=temperature, repetition_penalty=penalty)
        with pytest.raises(BackendError, match="the decoder gave logits that are not numbers: check the"):
            sampler.pick(np.array(logits, np.float32))
