"""The course of one request: plan, prompt, vision, prefill, then token by token."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runtime import contract
from runtime.detokenize import TextPieces
from runtime.errors import RequestError
from runtime.kv_cache import cache_bytes
from runtime.plan import PruningPlan, plan_pruning
from runtime.preprocess import load_pillow
from runtime.request import Request
from runtime.result import Result, Stopwatch, peak_rss_bytes
from runtime.sampling import pick
from runtime.vision import EncodedImages, Selection

if TYPE_CHECKING:
    from runtime.generator import Generator as TextGenerator

__all__ = ["AnswerRun"]


class AnswerRun:
    """One request on its way, holding what is known so far; `pieces` may be called once."""

    def __init__(self, generator: TextGenerator, request: Request, encoded: EncodedImages | None) -> None:
        """Take a request, and the visual tokens of its first images when they are there already."""
        self._generator = generator
        self._manifest = generator.manifest
        self._request = request
        self.encoded = encoded
        self._watch = Stopwatch()
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._finish_reason = "cancelled"
        self._kv_allocated = 0
        self.pixel_values: npt.NDArray[np.float32] | None = None

    def pieces(self, cancelled: Callable[[], bool]) -> Generator[str, None, Result]:
        """Yield pieces of text, return the result; `cancelled` is asked before each stage and each token."""
        plan = self._plan()
        rows = self._manifest.vision.prefix_tokens + plan.keep
        with self._watch.stage("embed"):
            ids = self._generator.prompt_ids(self._request, rows)
        self._check_length(ids.shape[1], plan)
        done = 0 if self.encoded is None else len(self.encoded.kept_indices)
        if done < len(self._request.all_images) and not cancelled():
            new = self._encode(plan, done)
            self.encoded = new if self.encoded is None else self.encoded.joined(new)
        if not cancelled():
            yield from self._decode(ids, cancelled)
        return self._result(plan, ids.shape[1])

    def _plan(self) -> PruningPlan:
        request, encoded = self._request, self.encoded
        if encoded is None:
            return plan_pruning(request, self._manifest)
        images, keep = encoded.kept_indices.shape
        if images > len(request.all_images):
            raise RequestError(
                f"got visual tokens of {images} images for a request with {len(request.all_images)}: "
                "they belong to the first images of history and turn, in order"
            )
        if request.ratio is not None or request.tokens is not None:
            asked = plan_pruning(request, self._manifest).keep
            if asked != keep:
                raise RequestError(
                    f"got {keep} visual tokens per image, but the request asks for {asked}: "
                    "encode the images again, or leave ratio and tokens out"
                )
        if keep < self._manifest.vision.tokens:
            return PruningPlan(keep, True, None)
        return PruningPlan(keep, False, "the visual tokens given are not pruned")

    def _check_length(self, prompt_tokens: int, plan: PruningPlan) -> None:
        limit = self._manifest.decoder.max_positions
        needed = prompt_tokens + self._request.max_new_tokens
        if needed > limit:
            way_out = "lower the ratio or max_new_tokens" if plan.keep > 1 else "lower max_new_tokens"
            if not self._request.all_images:
                way_out = "shorten the prompt or lower max_new_tokens"
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens and the answer up to {self._request.max_new_tokens}, "
                f"but the model has {limit} positions: {way_out}"
            )

    def _encode(self, plan: PruningPlan, done: int) -> EncodedImages:
        """Encode the images after the first `done`."""
        generator, request = self._generator, self._request
        selection = Selection(plan.keep, request.selector, request.seed + done)
        graph = generator.vision_graph(selection) if plan.pruned else contract.VISION_ENCODER
        with self._watch.stage("load"):
            generator.session(graph)
            load_pillow()
        with self._watch.stage("preprocess"):
            pixel_values = self.pixel_values = generator.preprocess(request.all_images[done:])
        with self._watch.stage("vision"):
            if plan.pruned:
                return generator.encode_images(pixel_values, selection)
            everything = np.tile(np.arange(plan.keep, dtype=np.int64), (len(pixel_values), 1))
            return EncodedImages(generator.encode_unpruned(pixel_values), everything, None)

    def _decode(
        self, ids: npt.NDArray[np.int64], cancelled: Callable[[], bool]
    ) -> Generator[str, None, None]:
        generator, request, watch = self._generator, self._request, self._watch
        rng = np.random.default_rng(request.seed)
        text = TextPieces(generator.decode_text)
        with watch.stage("load"):
            generator.session(contract.EMBED_TOKENS)
            generator.session(contract.DECODER)
        with watch.stage("embed"):
            embeds = generator.embed(ids, None if self.encoded is None else self.encoded.features)
        with watch.stage("prefill"):
            run = generator.decoder_run(self._positions(ids.shape[1]))
            self._kv_allocated = run.cache.allocated_bytes
            token = pick(run.prefill(embeds), request.temperature, request.top_p, rng)
        while True:
            self._tokens.append(token)
            if token in self._manifest.tokens.eos and not request.ignore_eos:
                self._finish_reason = "eos"
                break
            if piece := self._shown(text.push(token)):
                yield piece
            if len(self._tokens) == request.max_new_tokens:
                self._finish_reason = "length"
                break
            if cancelled():
                break
            with watch.stage("decode"):
                token = pick(run.step(token), request.temperature, request.top_p, rng)
        if rest := self._shown(text.flush()):
            yield rest

    def _shown(self, piece: str) -> str:
        """The piece as shown and kept: the white space that models put before an answer is not part of it."""
        piece = piece if self._text else piece.lstrip()
        if piece:
            self._text.append(piece)
        return piece

    def _positions(self, prompt_tokens: int) -> int:
        """Positions that the decoder sees: the last token of an answer is never fed back."""
        return prompt_tokens + self._request.max_new_tokens - 1

    def _result(self, plan: PruningPlan, prompt_tokens: int) -> Result:
        images, total = len(self._request.all_images), self._manifest.vision.tokens
        positions = self._positions(prompt_tokens)
        kept = () if self.encoded is None else self.encoded.kept_indices.tolist()
        return Result(
            text="".join(self._text),
            token_ids=tuple(self._tokens),
            finish_reason=self._finish_reason,
            prompt_tokens=prompt_tokens,
            visual_tokens_before=(total,) * images,
            visual_tokens_after=(plan.keep,) * images,
            kept_indices=tuple(tuple(row) for row in kept),
            pruned=plan.pruned,
            reason=plan.reason,
            timings=self._watch.timings(),
            kv_bytes=cache_bytes(self._manifest.decoder, positions),
            kv_bytes_unpruned=cache_bytes(self._manifest.decoder, positions + images * (total - plan.keep)),
            kv_bytes_allocated=self._kv_allocated,
            peak_rss_bytes=peak_rss_bytes(),
        )
