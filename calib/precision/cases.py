"""What a loss is measured on: the golden request with its answer, and a text, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.precision.loss import MIN_POSITIONS, LossCase

__all__ = ["TEXT", "loss_cases", "random_cases"]

_LENGTH = 128  # positions of one case: [128, V] float32 is 78 MB at a vocabulary of 152,000

TEXT = """\
The picture shows a kitchen in the early morning. On the table by the window stand a white cup, a plate with
two slices of bread, and a glass jar that is half full of honey. The chair on the left has been pushed back,
as if somebody had just got up. A cat sleeps on the other chair. Behind the table there is a shelf with
seven books; the third one from the left has a red cover, and its title cannot be read. The clock on the
wall says ten past six.

Question: How many cups are on the table? Answer: There is one cup on the table. It is white.
Question: Where is the cat? Answer: The cat is asleep on the chair to the right of the table.
Question: What time is it? Answer: According to the clock on the wall it is ten past six, so it is early in
the morning.

A street in a small town after the rain. Two cars are parked in front of a bakery, a blue one and a grey
one, and a woman with a yellow umbrella walks past them towards the bridge. Water runs along the kerb. The
sign above the door of the bakery reads "Open from 7 to 18", and below it someone has written the prices of
the day: bread 3.40, rolls 0.80, cake 2.95. A dog waits beside the door.

Question: What is the price of three rolls? Answer: One roll costs 0.80, so three rolls cost 2.40.
Question: Is the bakery open at 19 o'clock? Answer: No. The sign says that it is open from 7 to 18.
Question: Describe the colours in the picture. Answer: The street is dark and wet, one car is blue and the
other one is grey, and the brightest thing in the picture is the yellow umbrella of the woman who walks
towards the bridge.

The chart compares the yield of four fields over three years. In the first year all four gave about five
tonnes. In the second year the northern field rose to seven tonnes while the western one fell to four,
because its soil had not been limed. In the third year the difference grew smaller again: six and a half
tonnes in the north, six in the west.
"""


def loss_cases(
    golden: Mapping[str, npt.NDArray[Any]], image_token: int, text: Sequence[int], vocab: int
) -> tuple[LossCase, ...]:
    """The golden prompt with its answer, then windows of a text: `MIN_POSITIONS` positions of text.

    Args:
        golden: tensors by parity stage.
        image_token: id of the placeholder.
        text: ids of `TEXT`; where they are too few, random ids follow.
        vocab: ids are below it.
    """
    ids = np.concatenate([golden["input_ids"][0], golden["tokens"][0]])
    visual, positions = ids == image_token, golden["position_ids"]
    # A generated token that happens to be a placeholder is read as a token.
    visual[golden["input_ids"].shape[1] :] = False
    following = positions.max(axis=1, keepdims=True).max() + 1 + np.arange(golden["tokens"].shape[1])
    places = np.concatenate([positions, np.tile(following, (len(positions), 1))], axis=1)
    cases = [LossCase(ids, visual, golden["pruned_features"], places)]
    needed = MIN_POSITIONS - int((~visual).sum())
    text = text[: max(0, needed)]
    windows = [np.asarray(text[start : start + _LENGTH], np.int64) for start in range(0, len(text), _LENGTH)]
    cases += [LossCase(window) for window in windows]
    return (*cases, *random_cases(max(0, needed - len(text)), vocab))


def random_cases(count: int, vocab: int, seed: int = 0) -> tuple[LossCase, ...]:
    """Cases of random token ids with `count` positions in all, rounded up to whole cases.

    Random ids are no text: a model is less sure of itself on them, so that the agreement is lower than on
    text.
    """
    rng = np.random.default_rng(seed)
    return tuple(LossCase(rng.integers(0, vocab, _LENGTH)) for _ in range(-(-count // _LENGTH)))
