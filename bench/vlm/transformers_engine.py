"""transformers on the checkpoint: the forward pass over picture and prompt, then token by token."""

from __future__ import annotations

import time
from typing import Any

from bench.errors import BenchError
from bench.processors import PROMPT
from bench.vlm.base import Answer, Engine, Logits, Task

__all__ = ["TransformersEngine"]


class TransformersEngine(Engine):
    """A model with its own KV cache; it prunes nothing, so ratio 1 is all that it answers."""

    def __init__(self, task: Task, dtype: str, attention: str) -> None:
        """Load the checkpoint in a dtype of torch, with `sdpa` or `eager` attention in tower and decoder."""
        import torch
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        torch.set_num_threads(task.threads)
        self._torch: Any = torch
        self._model: Any = LlavaForConditionalGeneration.from_pretrained(
            task.checkpoint, dtype=getattr(torch, dtype), attn_implementation=attention
        ).eval()
        processor = AutoProcessor.from_pretrained(task.checkpoint)
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        turn = {"role": "user", "content": content}
        prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs: Any = processor(images=[task.picture], text=prompt, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        self._inputs = inputs
        # The vision part ends where the projector returns.
        self._projected: list[float] = []
        self._model.model.multi_modal_projector.register_forward_hook(
            lambda *_: self._projected.append(time.perf_counter())
        )

    def answer(self, ratio: float, new: int) -> Answer:
        """See `Engine.answer`.

        Raises:
            BenchError: a ratio below 1.
        """
        if ratio != 1.0:
            raise BenchError(f"transformers prunes nothing: ratio {ratio:g} cannot be asked of it, 1 can")
        self._projected.clear()
        start = time.perf_counter()
        found = self._forward(**self._inputs)
        tokens = [int(found.logits[0, -1].argmax())]
        first = time.perf_counter()
        cache = found.past_key_values
        for _ in range(new - 1):
            ids = self._torch.tensor([tokens[-1:]])
            tokens.append(int(self._forward(input_ids=ids, past_key_values=cache).logits[0, -1].argmax()))
        end = time.perf_counter()
        ids = self._inputs["input_ids"][0]
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        return Answer(
            vision=self._projected[0] - start,
            embed=None,
            prefill=first - self._projected[0],
            decode=(end - first) / (new - 1) if new > 1 else 0.0,
            preprocess=None,
            visual_tokens=int((ids == self._model.config.image_token_id).sum()),
            prompt_tokens=len(ids),
            kv_bytes=held,
            kv_allocated=held,
            tokens=tuple(tokens),
        )

    def logits(self) -> Logits:
        """See `Engine.logits`."""
        found: Logits = self._forward(**self._inputs).logits[0, -1].float().numpy()
        return found

    def _forward(self, **inputs: Any) -> Any:
        with self._torch.inference_mode():
            return self._model(**inputs, use_cache=True, logits_to_keep=1)
