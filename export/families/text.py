"""The text side that families share: a language model with a key/value cache, its embedding and its head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from export.decoder.kinds import caches_for
from export.errors import CheckpointError
from export.families.base import Subgraph
from runtime import contract
from runtime.manifest import DecoderInfo

__all__ = ["TextModel"]

# It reads the positions on the host to choose its frequencies, which a static graph cannot do. `dynamic` does
# so beyond max_position_embeddings alone, where no prompt of a bundle goes (`_fixed_frequencies`).
_ROPE_BY_VALUE = ("longrope",)


class TextModel:
    """Base of families whose language model keeps one key and one value tensor per layer."""

    position_axes: ClassVar[int] = 1
    """Rows of the position ids: 1, or 3 for M-RoPE; as in the family's layout."""

    def language_model(self, model: Any) -> Any:
        """The decoder without its head."""
        return model.model.language_model

    def lm_head(self, model: Any) -> Any:
        """Hidden states to logits."""
        return model.lm_head

    def check_text(self, text: Any) -> None:
        """Refuse a `text_config` that cannot become one graph.

        Raises:
            CheckpointError: rotary scaling by prompt length, or no bound on the positions.
        """
        for kind in _rope_types(getattr(text, "rope_parameters", None)):
            if kind in _ROPE_BY_VALUE:
                raise CheckpointError(
                    f"the language model ({text.model_type}) uses {kind!r} rotary scaling, whose frequencies "
                    "depend on the prompt length and cannot be one graph: use a checkpoint with another "
                    "rope_type (default, linear, llama3, yarn)"
                )
        if not getattr(text, "max_position_embeddings", None):
            raise CheckpointError(
                f"text_config ({text.model_type}) has no max_position_embeddings, which bounds prompt and "
                "answer: add it to config.json"
            )

    def decoder_info(self, model: Any) -> DecoderInfo:
        """Shapes of the cache, found by running one token.

        Raises:
            CheckpointError: the cache is not one key and one value tensor of equal shape per layer.
        """
        import torch
        from transformers import DynamicCache

        text = model.config.text_config
        cache = DynamicCache()
        try:
            with torch.no_grad():
                self.language_model(model)(
                    inputs_embeds=torch.zeros(1, 1, text.hidden_size),
                    position_ids=self._positions(torch.zeros(1, 1, dtype=torch.int64)),
                    past_key_values=cache,
                    use_cache=True,
                )
            shapes = {tuple(part.shape) for layer in cache.layers for part in (layer.keys, layer.values)}
            _, kv_heads, rows, head_dim = min(shapes)
        # State-space and hybrid models fail in their own ways when given this cache.
        except Exception as error:
            raise CheckpointError(_no_cache(text)) from error
        if len(shapes) != 1 or len(cache.layers) != text.num_hidden_layers or rows != 1:
            raise CheckpointError(_no_cache(text))
        return DecoderInfo(
            layers=len(cache.layers),
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden_size=text.hidden_size,
            vocab_size=self.lm_head(model).out_features,
            max_positions=text.max_position_embeddings,
            position_axes=self.position_axes,
            caches=caches_for(head_dim),
        )

    def text_subgraphs(self, model: Any, decoder: DecoderInfo) -> Iterator[Subgraph]:
        """`embed_tokens` and the decoders, one graph for each kind of cache in `decoder.caches`."""
        import torch

        from export.decoder.lower import lowerings
        from export.decoder.tied import StoredWeight
        from export.decoder.trace import Decoder, traced_contract
        from export.wrappers import EmbedTokens

        embedding, head = model.get_input_embeddings(), self.lm_head(model)
        yield Subgraph(
            contract.EMBED_TOKENS,
            EmbedTokens(embedding).eval(),
            (torch.zeros(2, 3, dtype=torch.int64),),
            contract.embed_contract(decoder.hidden_size),
        )
        batch, seq, past = 2, 3, 5
        tied = head.weight is embedding.weight
        with _fixed_frequencies(self.language_model(model)):
            yield Subgraph(
                contract.DECODER,
                Decoder(self.language_model(model), head).eval(),
                (
                    torch.zeros(batch, seq, decoder.hidden_size),
                    torch.ones(batch, past + seq, dtype=torch.int64),
                    self._positions(torch.arange(past, past + seq).expand(batch, -1).contiguous()),
                    torch.tensor(1),
                    [
                        torch.zeros(batch, decoder.kv_heads, past, decoder.head_dim)
                        for _ in range(2 * decoder.layers)
                    ],
                ),
                traced_contract(decoder),
                stored=(StoredWeight(head.weight, contract.EMBED_TOKENS),) if tied else (),
                lowered=lowerings(decoder),
            )

    def _positions(self, positions: Any) -> Any:
        """[batch, seq], or [axes, batch, seq] with the same on every axis."""
        if self.position_axes == 1:
            return positions
        return positions.expand(self.position_axes, -1, -1).contiguous()


@contextmanager
def _fixed_frequencies(language_model: Any) -> Iterator[None]:
    """`dynamic` rotary scaling without its look at the positions: until max_position_embeddings it has the
    frequencies that it was made with."""
    found = [(part, part.rope_type) for part in language_model.modules() if hasattr(part, "rope_type")]
    for part, kind in found:
        part.rope_type = _without_dynamic(kind)
    try:
        yield
    finally:
        for part, kind in found:
            part.rope_type = kind


def _without_dynamic(kind: Any) -> Any:
    """`kind` may be one for each kind of layer."""
    if isinstance(kind, dict):
        return {layers: _without_dynamic(own) for layers, own in kind.items()}
    return "default" if kind == "dynamic" else kind


def _rope_types(parameters: Any) -> set[str]:
    """Every `rope_type` in a rope configuration, which may hold one set of parameters per kind of layer."""
    if not isinstance(parameters, dict):
        return set()
    nested = {kind for value in parameters.values() for kind in _rope_types(value)}
    return nested | ({parameters["rope_type"]} if "rope_type" in parameters else set())


def _no_cache(text: Any) -> str:
    return (
        f"the language model ({text.model_type}) does not keep one key and one value tensor of equal shape "
        "per layer, and the decoder graph needs exactly that: use a checkpoint with a plain attention "
        "decoder (Llama, Qwen2, Mistral, Gemma, Phi …)"
    )
