"""The chat template of a checkpoint as the plain `prompt` record of a bundle, so that a runtime needs no
Jinja.

The template is rendered with sentinels where prompt, answer and images go, cut apart there, and the result
is verified: for 0, 1 and 2 images, in one turn and in two, text and token ids must equal what transformers
makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.errors import PromptError
from runtime.errors import FopruError
from runtime.manifest import PromptTemplate
from runtime.prompt import expand_images, render_chat

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


def prompt_from_processor(processor: Any, image_token: int, rows: int) -> PromptInfo:
    """Derive and verify the prompt template of a processor.

    Args:
        processor: of the checkpoint, with tokenizer and, usually, a chat template.
        image_token: id of the image placeholder in the model's config.
        rows: placeholders that one image becomes (p + N).

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
        _verify_expansion(processor, template, image_token, rows)
        return PromptInfo(template, f"no chat template in the checkpoint, using {template.first_turn!r}")
    template, note = _derive(processor, token)
    _verify(processor, template, token)
    _verify_expansion(processor, template, image_token, rows)
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
    base = DEFAULT_TEMPLATE
    return PromptTemplate(
        base.first_turn,
        base.next_turn,
        base.image.replace("<image>", token),
        base.add_special_tokens,
        base.generation,
        base.past_answer,
    )


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
    add_special = not (processor.tokenizer.bos_token and plain.startswith(processor.tokenizer.bos_token))
    next_turn, past_answer, note = _second_turn(
        processor, plain[: len(plain) - len(generation)], generation, image
    )
    template = PromptTemplate(
        first.replace(_PROMPT, "{prompt}"), next_turn, image, add_special, generation, past_answer
    )
    return template, note


def _second_turn(
    processor: Any, opened: str, generation: str, image: str
) -> tuple[str | None, str, str | None]:
    """(next_turn, past_answer, note) of a chat, or no next_turn where the template has no such form."""
    single = (
        None,
        "{answer}",
        "the chat template has no second turn that follows from the first: no chat history",
    )
    try:
        plain, one, two = (
            _render(processor, [(_PROMPT, 0, _ANSWER), (_SECOND, images, "")]) for images in range(3)
        )
    except PromptError:
        return single
    if not plain.startswith(opened) or plain.count(_ANSWER) != 1 or not plain.endswith(generation):
        return single
    head, tail = plain[len(opened) :].split(_ANSWER)
    cut = len(plain) - len(tail)
    try:
        turn, same = _cut_images(tail, one[cut:], two[cut:], image)
    except PromptError:
        return single
    if same != image or turn.count(_SECOND) != 1:
        return single
    return turn.replace(_SECOND, "{prompt}"), head + "{answer}", None


def _cut_images(plain: str, one: str, two: str, token: str) -> tuple[str, str]:
    """Find where images go: (text with an `{images}` slot, text of one image) that makes all renderings."""
    length = len(one) - len(plain)
    candidates = [
        (plain[:at] + "{images}" + plain[at:], image)
        for at in range(len(plain) + 1)
        for image in [one[at : at + length]]
        if token in image
        and one == plain[:at] + image + plain[at:]
        and two == plain[:at] + image * 2 + plain[at:]
    ]
    # The same text can be cut in several places ("<image>\n" or "\n<image>"): take the one that starts with
    # the token.
    candidates.sort(key=lambda found: not found[1].startswith(token))
    if not candidates or candidates[0][0].count(_PROMPT) + candidates[0][0].count(_SECOND) != 1:
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
        wanted, made = _render(processor, chat), render_chat(template, chat)
        if wanted != made:
            raise PromptError(
                f"the chat template is no plain text with slots: it renders {wanted!r}, the slots give "
                f"{made!r}; simplify chat_template.jinja (image token {token!r})"
            )


def _verify_expansion(processor: Any, template: PromptTemplate, image_token: int, rows: int) -> None:
    """Token ids of processor and runtime must agree once images have been expanded."""
    import numpy as np
    from PIL import Image

    picture = Image.new("RGB", (8, 8), (90, 120, 150))
    chats = [[("What is this?", count, "")] for count in range(3)]
    if template.next_turn is not None:
        chats.append([("What is this?", 1, "A cat."), ("And that?", 1, "")])
    for chat in chats:
        text = render_chat(template, chat)
        count = sum(images for _, images, _ in chat)
        kwargs: dict[str, Any] = {"images": [picture] * count} if count else {}
        wanted = processor(text=text, add_special_tokens=template.add_special_tokens, **kwargs)["input_ids"][
            0
        ]
        backend = processor.tokenizer.backend_tokenizer
        plain = np.asarray(backend.encode(text, add_special_tokens=template.add_special_tokens).ids, np.int64)
        found = sum(1 for value in wanted if value == image_token)
        if found != rows * count:
            raise PromptError(
                f"the processor makes {found} placeholders of {count} images, but the model makes {rows} "
                "rows of each: set patch_size, num_additional_image_tokens and "
                "vision_feature_select_strategy in processor_config.json"
            )
        try:
            made = expand_images(plain, image_token, [rows] * count).tolist()
        except FopruError as error:
            raise PromptError(
                f"the tokenizer splits the image token ({error}): make it a special token"
            ) from error
        if made != list(wanted):
            raise PromptError(
                f"the processor and tokenizer.json disagree on the ids of {text!r}: save both again with "
                "save_pretrained"
            )
