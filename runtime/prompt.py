"""Text and images to token ids: template, tokenizer, and one placeholder per visual token that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle
from runtime.errors import BundleError, RequestError
from runtime.layouts import IMAGE_SLOT, ImagePlan
from runtime.lazy import require
from runtime.manifest import PromptTemplate
from runtime.request import Request

__all__ = ["Prompter", "expand_images", "fill_turn", "image_text", "render_chat"]

_TOKENIZER = "tokenizer.json"


def fill_turn(turn: str, images: str, prompt: str) -> str:
    """Put images and prompt into a turn template; what the prompt contains is never taken for a slot."""
    before, after = turn.split("{prompt}")
    return before.replace("{images}", images) + prompt + after.replace("{images}", images)


def image_text(template: PromptTemplate, image_token: str, plan: ImagePlan) -> str:
    """What stands for an image in a turn, with the image token once per run of placeholders."""
    return template.image.replace(image_token, plan.text.replace(IMAGE_SLOT, image_token))


def render_chat(template: PromptTemplate, turns: Sequence[tuple[str, Sequence[str], str]]) -> str:
    """The text of a chat; `turns` are (prompt, `image_text`s, answer), the last one not yet answered."""
    text = ""
    for number, (prompt, images, answer) in enumerate(turns):
        turn = template.first_turn if number == 0 else str(template.next_turn)
        plain = template.first_text if number == 0 else template.next_text
        if not images and plain is not None:
            turn = plain
        text += fill_turn(turn, "".join(images), prompt)
        if number < len(turns) - 1:
            text = text[: len(text) - len(template.generation)] + template.past_answer.replace(
                "{answer}", answer
            )
    return text


def expand_images(ids: npt.NDArray[np.int64], image: int, runs: Sequence[int]) -> npt.NDArray[np.int64]:
    """Repeat the t-th `image` id `runs[t]` times; ids [L] with exactly len(runs) image ids.

    Raises:
        RequestError: another number of image ids.
    """
    places = np.flatnonzero(ids == image)
    if places.size != len(runs):
        raise RequestError(
            f"the prompt has {places.size} image tokens for {len(runs)} parts of images: "
            "write the prompt without image tokens, the template adds them"
        )
    counts = np.ones(ids.size, np.int64)
    counts[places] = runs
    return np.repeat(ids, counts)


class Prompter:
    """The bundle's tokenizer and prompt template. Safe to use from several threads once made."""

    def __init__(self, bundle: Bundle) -> None:
        """Load `tokenizer.json`.

        Raises:
            BundleError: it is missing or damaged, or does not fit the manifest.
            BackendError: the package tokenizers is not installed.
        """
        self._template = bundle.manifest.prompt
        self._image = bundle.manifest.tokens.image
        tokenizers = require("tokenizers", "tokenizers")
        file = bundle.file(_TOKENIZER)
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))
        # The Rust side raises bare Exception for every parse error.
        except Exception as error:
            raise BundleError(f"{file} cannot be loaded ({error}): copy the bundle again") from error
        # A tokenizer saved during training may carry both; they would cut or pad the prompt.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._image_text = self._tokenizer.id_to_token(self._image)
        if self._image_text is None:
            raise BundleError(
                f"tokens.image is {self._image}, which {file} does not have: "
                "rebuild the bundle with `python -m export.build`"
            )
        if self._template.image.count(self._image_text) != 1:
            raise BundleError(
                f"prompt.image is {self._template.image!r}, expected {self._image_text!r} in it once: "
                "rebuild the bundle with `python -m export.build`"
            )

    def render(self, request: Request, plans: Sequence[ImagePlan]) -> str:
        """The text of the whole chat, with one image token per run of placeholders; `plans` of all its
        images, in order.

        Raises:
            RequestError: a text holds the image token, or there is history and the model has no chat form.
        """
        turns = [*request.history, (request.prompt, request.images, "")]
        if len(turns) > 1 and self._template.next_turn is None:
            raise RequestError("this model's template has no second turn: ask without history")
        for prompt, _, answer in turns:
            for part in (prompt, answer):
                if self._image_text in part:
                    raise RequestError(
                        f"the prompt contains the image token {self._image_text!r}: leave it out, "
                        "the template adds one for every image"
                    )
        texts = iter([image_text(self._template, self._image_text, plan) for plan in plans])
        return render_chat(
            self._template,
            [(prompt, [next(texts) for _ in images], answer) for prompt, images, answer in turns],
        )

    def ids(self, request: Request, plans: Sequence[ImagePlan]) -> npt.NDArray[np.int64]:
        """Token ids [P] with one image id per run of placeholders, see `expand_images`."""
        encoded = self._tokenizer.encode(
            self.render(request, plans), add_special_tokens=self._template.add_special_tokens
        )
        return np.asarray(encoded.ids, np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
