"""LLaVA: a CLIP or SigLIP tower, an MLP projector that works per token, any decoder-only language model.

Source of the layout: `LlavaModel.get_image_features` and `LlavaProcessor` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from export.errors import CheckpointError
from export.families.base import Subgraph, VisionLayout
from runtime import contract
from runtime.manifest import DecoderInfo

if TYPE_CHECKING:
    from export.oracle import Oracle

__all__ = ["LlavaFamily"]

# Tower → leading rows that are not patches (CLIP puts CLS first, SigLIP has none).
_SPECIAL_ROWS = {"clip_vision_model": 1, "siglip_vision_model": 0}
# These read the positions on the host to choose their frequencies, which a static graph cannot do.
_ROPE_BY_VALUE = ("dynamic", "longrope")


class LlavaFamily:
    """`LlavaForConditionalGeneration`."""

    model_type = "llava"
    architecture = "LlavaForConditionalGeneration"

    def layout(self, config: Any) -> VisionLayout:
        tower = config.vision_config
        if tower.model_type not in _SPECIAL_ROWS:
            raise CheckpointError(
                f"the vision tower is {tower.model_type!r}, and the supported towers of a llava checkpoint "
                f"are: {', '.join(sorted(_SPECIAL_ROWS))}"
            )
        self._check_language_model(config.text_config)
        if not isinstance(tower.image_size, int) or not isinstance(tower.patch_size, int):
            raise CheckpointError(
                f"the vision tower has image_size {tower.image_size} and patch_size {tower.patch_size}, but "
                "the towers of this family are square: give each as one number"
            )
        special = _SPECIAL_ROWS[tower.model_type]
        side = tower.image_size // tower.patch_size
        dropped = 1 if config.vision_feature_select_strategy == "default" else 0
        # Without a CLS row, "default" drops the first patch: what is left is no grid any more.
        lost_patches = max(dropped - special, 0)
        return VisionLayout(
            image_size=(tower.image_size, tower.image_size),
            grid=None if lost_patches else (side, side),
            tokens=side * side - lost_patches,
            prefix_tokens=max(special - dropped, 0),
            special_tokens=special,
            states=_states(config.vision_feature_layer, tower.num_hidden_layers),
            rows_dropped=dropped,
        )

    @staticmethod
    def _check_language_model(text: Any) -> None:
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
        import torch
        from transformers import DynamicCache

        text = model.config.text_config
        cache = DynamicCache()
        try:
            with torch.no_grad():
                model.model.language_model(
                    inputs_embeds=torch.zeros(1, 1, text.hidden_size), past_key_values=cache, use_cache=True
                )
            shapes = {tuple(part.shape) for layer in cache.layers for part in (layer.keys, layer.values)}
            _, kv_heads, rows, head_dim = min(shapes)
        except (
            Exception
        ) as error:  # state-space and hybrid models fail in their own ways when given this cache
            raise CheckpointError(_no_cache(text)) from error
        if len(shapes) != 1 or len(cache.layers) != text.num_hidden_layers or rows != 1:
            raise CheckpointError(_no_cache(text))
        return DecoderInfo(
            layers=len(cache.layers),
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden_size=text.hidden_size,
            vocab_size=model.lm_head.out_features,
            max_positions=text.max_position_embeddings,
        )

    def subgraphs(self, model: Any, layout: VisionLayout, decoder: DecoderInfo) -> Iterator[Subgraph]:
        import torch

        from export.wrappers import Decoder, EmbedTokens, VisionEncoder

        rows = layout.prefix_tokens + layout.tokens
        fixed = contract.static_contracts(layout.image_size, rows, decoder.hidden_size)
        tower, projector = model.model.vision_tower, model.model.multi_modal_projector
        yield Subgraph(
            contract.VISION_ENCODER,
            VisionEncoder(tower, projector, layout.states, layout.rows_dropped).eval(),
            (torch.zeros(2, 3, *layout.image_size),),
            fixed[contract.VISION_ENCODER],
        )
        yield Subgraph(
            contract.EMBED_TOKENS,
            EmbedTokens(model.get_input_embeddings()).eval(),
            (torch.zeros(2, 3, dtype=torch.int64),),
            fixed[contract.EMBED_TOKENS],
        )
        batch, seq, past = 2, 3, 5
        yield Subgraph(
            contract.DECODER,
            Decoder(model.model.language_model, model.lm_head).eval(),
            (
                torch.zeros(batch, seq, decoder.hidden_size),
                torch.ones(batch, past + seq, dtype=torch.int64),
                torch.arange(past, past + seq).expand(batch, -1).contiguous(),
                torch.tensor(1),
                [
                    torch.zeros(batch, decoder.kv_heads, past, decoder.head_dim)
                    for _ in range(2 * decoder.layers)
                ],
            ),
            contract.decoder_contract(
                decoder.layers, decoder.kv_heads, decoder.head_dim, decoder.vocab_size, decoder.hidden_size
            ),
        )

    def oracle(self, model: Any, processor: Any) -> Oracle:
        from export.oracle import Oracle

        return Oracle(model, processor)


def _states(feature_layer: int | list[int], layers: int) -> tuple[int, ...]:
    """Indices into the `layers + 1` hidden states, counted from 0."""
    chosen = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    for index in chosen:
        if not -layers - 1 <= index <= layers:
            raise CheckpointError(
                f"vision_feature_layer is {feature_layer}, but the tower has {layers} layers: give "
                f"-{layers + 1}..{layers}"
            )
    states = tuple(index % (layers + 1) for index in chosen)
    if not states or max(states) == 0:
        raise CheckpointError(
            f"vision_feature_layer is {feature_layer}, so no attention reaches the features and nothing can "
            f"score the tokens: give a layer in 1..{layers} or -{layers}..-1"
        )
    return states


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
