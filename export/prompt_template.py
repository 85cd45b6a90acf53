"""The chat template of a checkpoint as the plain `prompt` record of a bundle, so that a runtime needs no
Jinja.

The template is rendered with sentinels where prompt, answer and images go, cut apart there, and the result
is verified: for 0, 1 and 2 images of several sizes, in one turn and in two, text and token ids must equal
what transformers makes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from export.errors import PromptError
from runtime.errors import FopruError
from runtime.layouts import ImageLayout
from runtime.manifest import PromptTemplate
from runtime.prompt import expand_images, image_text, render_chat

__all__ = ["DEFAULT_TEMPLATE", "PromptInfo", "conversation", "prompt_from_processor"]

# No chat template: the form of LLaVA-1.5, which most checkpoints without one descend from.
DEFAULT_TEMPLATE = PromptTemplate(
    first_turn="USER: {images}{prompt} ASSISTANT:",
    next_turn=" USER: {images}{prompt} ASSISTANT:",
    image="<image>\n",
    add_special_tokens=True,
    generation="ASSISTANT:",
    past_answer="ASSISTANT: {answer}",
)
# Plain words: templates may strip, lower or escape anything fancier.
_PROMPT, _ANSWER, _SECOND = "SENTINELPROMPTONE", "SENTINELANSWER", "SENTINELPROMPTTWO"
# (height, width) of what expansion is verified with: square, wide, tall, and larger than most tiles.
_SIZES = ((48, 48), (40, 120), (120, 40), (500, 700))


@dataclass(frozen=True)
class PromptInfo:
    """The template, and what a user should know about where it comes from (None: the checkpoint's own)."""

    template: PromptTemplate
    note: str | None


def conversation(turns: list[tuple[str, list[Any], str]]) -> list[dict[str, Any]]:
    """Messages for `apply_chat_template`; `turns` are (prompt, images, answer), the last answer is ignored.

    An image of None is a bare image slot.
    """
    messages: list[dict[str, Any]] = []
    for number, (prompt, images, answer) in enumerate(turns):
        content = [
            {"type": "image"} if image is None else {"type": "image", "image": image} for image in images
        ]
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": prompt}]})
        if number < len(turns) - 1:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def prompt_from_processor(processor: Any, image_token: int, layout: ImageLayout) -> PromptInfo:
    """Derive and verify the prompt template of a processor.

    Args:
        processor: of the checkpoint, with tokenizer and, usually, a chat template.
        image_token: id of the image placeholder in the model's config.
        layout: what an image of a size becomes in the prompt.

    Raises:
        PromptError: the template cannot be expressed, or processor, tokenizer and model disagree.
    """
    token = processor.tokenizer.convert_ids_to_tokens(image_token)
    if token is None or processor.image_token != token:
        raise PromptError(
            f"the processor's image token is {processor.image_token!r}, but the model's image_token_index "
            f"{image_token} is {token!r}: set one of them right in config.json or tokenizer_config.json"
        )
    if not _has_template(processor):
        template = _with_image_token(token)
        _verify_expansion(processor, template, image_token, layout)
        return PromptInfo(template, f"no chat template in the checkpoint, using {template.first_turn!r}")
    template, note = _derive(processor, token)
    _verify(processor, template, token)
    _verify_expansion(processor, template, image_token, layout)
    if "strftime_now" in _template_text(processor):
        note = "; ".join(filter(None, (note, "the chat template writes the date: the bundle keeps today's")))
    return PromptInfo(template, note)


def _has_template(processor: Any) -> bool:
    return bool(_template_text(processor))


def _template_text(processor: Any) -> str:
    return str(
        getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None) or ""
    )


def _with_image_token(token: str) -> PromptTemplate:
    return replace(DEFAULT_TEMPLATE, image=DEFAULT_TEMPLATE.image.replace("<image>", token))


def _render(processor: Any, turns: list[tuple[str, int, str]], generation: bool = True) -> str:
    messages = conversation([(prompt, [None] * images, answer) for prompt, images, answer in turns])
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    try:
        return str(
            processor.apply_chat_template(messages, chat_template=template, add_generation_prompt=generation)
        )
    except Exception as error:  # Jinja errors, and whatever a template raises through raise_exception
        raise PromptError(
            f"the chat template cannot be rendered ({' '.join(str(error).split())[:200]}): correct "
            "chat_template.jinja"
        ) from error


def _derive(processor: Any, token: str) -> tuple[PromptTemplate, str | None]:
    plain, one, two = (_render(processor, [(_PROMPT, images, "")]) for images in range(3))
    first, image = _cut_images(plain, one, two, token)
    opened = _render(processor, [(_PROMPT, 0, "")], generation=False)
    generation = plain[len(opened) :] if plain.startswith(opened) else ""
    template = PromptTemplate(
        first_turn=first.replace(_PROMPT, "{prompt}"),
        next_turn=None,
        image=image,
        add_special_tokens=not (
            processor.tokenizer.bos_token and plain.startswith(processor.tokenizer.bos_token)
        ),
        generation=generation,
        first_text=_text_form(plain, first, _PROMPT),
    )
    found = _second_turn(processor, plain[: len(plain) - len(generation)], template)
    if found is None:
        return template, "the chat template has no second turn that follows from the first: no chat history"
    return found, None


def _second_turn(processor: Any, opened: str, template: PromptTemplate) -> PromptTemplate | None:
    """The template with the form of a further turn, or None where the chat template has no such form."""
    try:
        plain, one, two = (
            _render(processor, [(_PROMPT, 0, _ANSWER), (_SECOND, images, "")]) for images in range(3)
        )
    except PromptError:
        return None
    if not plain.startswith(opened) or plain.count(_ANSWER) != 1 or not plain.endswith(template.generation):
        return None
    head, tail = plain[len(opened) :].split(_ANSWER)
    cut = len(plain) - len(tail)
    try:
        turn, same = _cut_images(tail, one[cut:], two[cut:], template.image)
    except PromptError:
        return None
    if same != template.image or turn.count(_SECOND) != 1:
        return None
    return replace(
        template,
        next_turn=turn.replace(_SECOND, "{prompt}"),
        past_answer=head + "{answer}",
        next_text=_text_form(tail, turn, _SECOND),
    )


def _text_form(plain: str, turn: str, prompt: str) -> str | None:
    """The turn without images, None where it is the turn with nothing in place of them."""
    return None if plain == turn.replace("{images}", "") else plain.replace(prompt, "{prompt}")


def _cut_images(plain: str, one: str, two: str, token: str) -> tuple[str, str]:
    """Find where images go: (text with an `{images}` slot, text of one image) that makes the renderings with
    images, and if possible `plain`, that without."""
    length = len(two) - len(one)
    candidates = [
        (one[:at] + "{images}" + one[at + length :], image)
        for at in range(len(one) - length + 1)
        for image in [one[at : at + length]]
        if token in image and two == one[:at] + image + one[at:]
    ]
    # The same text can be cut in several places ("<image>\n" or "\n<image>"): take the one that leaves the
    # text without images, then the one that starts with the token.
    candidates.sort(
        key=lambda found: (found[0].replace("{images}", "") != plain, not found[1].startswith(token))
    )
    if (
        not candidates
        or candidates[0][0].count(_PROMPT) + candidates[0][0].count(_SECOND) != 1
        or plain.count(_PROMPT) + plain.count(_SECOND) < 1
    ):
        raise PromptError(
            "the chat template does not put images and prompt at fixed places (with 0, 1 and 2 images it "
            f"renders {plain!r}, {one!r}, {two!r}): simplify chat_template.jinja"
        )
    return candidates[0]


def _verify(processor: Any, template: PromptTemplate, token: str) -> None:
    """Compare texts, for prompts without outer blanks: many templates trim, which changes nothing else."""
    chats = [
        [(f"What is this?{extra}", images, "")]
        for images in range(3)
        for extra in ("", " {images} {prompt} \n?")
    ]
    if template.next_turn is not None:
        chats += [
            [("What is this?", images, "A cat."), ("And that?", more, "")]
            for images in (0, 1, 2)
            for more in (0, 1)
        ]
    for chat in chats:
        turns = [(prompt, [template.image] * images, answer) for prompt, images, answer in chat]
        wanted, made = _render(processor, chat), render_chat(template, turns)
        if wanted != made:
            raise PromptError(
                f"the chat template is no plain text with slots: it renders {wanted!r}, the slots give "
                f"{made!r}; simplify chat_template.jinja (image token {token!r})"
            )


_Sizes = tuple[tuple[int, int], ...]


def _verify_expansion(
    processor: Any, template: PromptTemplate, image_token: int, layout: ImageLayout
) -> None:
    """Token ids of processor and runtime must agree once images have been expanded."""
    chats: list[list[tuple[str, _Sizes, str]]] = [[("What is this?", (), "")]]
    chats += [[("What is this?", (size,), "")] for size in _SIZES]
    chats.append([("What is this?", _SIZES[1:3], "")])
    if template.next_turn is not None:
        chats.append([("What is this?", _SIZES[:1], "A cat."), ("And that?", _SIZES[1:2], "")])
    for chat in chats:
        wanted = _processor_ids(processor, template, chat)
        plans = [layout.plan(*size) for _, sizes, _ in chat for size in sizes]
        runs = [run for plan in plans for run in plan.runs]
        found = wanted.count(image_token)
        if found != sum(runs):
            raise PromptError(
                f"the processor makes {found} placeholders of {len(plans)} images, but the model makes "
                f"{sum(runs)} rows of them: set patch_size, num_additional_image_tokens and "
                "vision_feature_select_strategy, where the processor has them, in processor_config.json"
            )
        if _runtime_ids(processor, template, image_token, chat, layout) != wanted:
            text = _chat_text(template, chat)
            raise PromptError(
                f"the processor and tokenizer.json disagree on the ids of {text!r}: save both again with "
                "save_pretrained"
            )


def _chat_text(template: PromptTemplate, chat: list[tuple[str, _Sizes, str]]) -> str:
    """The text that a processor gets: an image is one image token."""
    return render_chat(
        template, [(prompt, [template.image] * len(sizes), answer) for prompt, sizes, answer in chat]
    )


def _processor_ids(
    processor: Any, template: PromptTemplate, chat: list[tuple[str, _Sizes, str]]
) -> list[int]:
    from PIL import Image

    pictures = [
        Image.new("RGB", (width, height), (90, 120, 150)) for _, sizes, _ in chat for height, width in sizes
    ]
    made = processor(
        text=_chat_text(template, chat),
        add_special_tokens=template.add_special_tokens,
        **({"images": pictures} if pictures else {}),
    )
    return [int(value) for value in made["input_ids"][0]]


def _runtime_ids(
    processor: Any,
    template: PromptTemplate,
    image_token: int,
    chat: list[tuple[str, _Sizes, str]],
    layout: ImageLayout,
) -> list[int]:
    import numpy as np

    token = processor.tokenizer.convert_ids_to_tokens(image_token)
    plans = [[layout.plan(*size) for size in sizes] for _, sizes, _ in chat]
    turns = [
        (prompt, [image_text(template, token, plan) for plan in own], answer)
        for (prompt, _, answer), own in zip(chat, plans, strict=True)
    ]
    backend = processor.tokenizer.backend_tokenizer
    encoded = backend.encode(render_chat(template, turns), add_special_tokens=template.add_special_tokens)
    runs = [run for own in plans for plan in own for run in plan.runs]
    try:
        ids: list[int] = expand_images(np.asarray(encoded.ids, np.int64), image_token, runs).tolist()
    except FopruError as error:
        raise PromptError(
            f"the tokenizer splits the image token ({error}): make it a special token"
        ) from error
    return ids
