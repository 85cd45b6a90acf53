"""Small tokenizers with the structure of real ones, trained in seconds, and texts hard on tokenizers."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.cpp_probe import LineProbe

__all__ = ["TOKENIZERS", "TextProbe", "mixed_lines", "random_text", "tokenizer_json"]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_WORD_LIST = (
    "the of and to in is image model token visual What's there? I'll don't WE'VE you'RE they'd I'm a "
    "Describe Möbius naïve café Straße ﬁnance ĲSSEL İstanbul ŉ ſpitz Grüße señor façade Ωμέγα ΣΊΣΥΦΟΣ "
    "привет ёлка мир 你好 世界 图像 日本語 テスト ひらがな 한국어 안녕하세요 "
    "สวัสดี नमस्ते क्षत्रिय বাংলা தமிழ் العربية مرحبا שלום "
    "ኢትዮጵያ გამარჯობა Հայերեն 0 1 42 1234567 3.14159 ٣٤٥ ४२ Ⅷ ½ ² x² 10⁻³ _snake_case_ camelCase HTTPServer"
)
_SYMBOL_LIST = (
    "😀 👩‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ❤️ 🏳️‍🌈 #️⃣ ️ ‍ á ạ̈ é ñ 각 각 Å Å ﷺ ㎏ ① ﬀ ½ ™ … — “”‘’ «» ¡¿ § ¶ ‽ ⁉ ∑∫ ≠ → ░ € ₿ ¥ "
    "\u200b \u200d \u2060 \ufeff \u00ad \u180e \u202e \ufffd "
    "\ue000 \U0010ffff \U0001f9ff \U00031350 \u1c89 \ua7cb"
)
_WORDS = _WORD_LIST.split()
_SYMBOLS = _SYMBOL_LIST.split(" ")
_CODE = (
    "for (int i = 0; i < n; ++i) {\n\treturn x[i] != '\\0';\n}",
    'def f(x: int) -> str:\n    return f"{x!r:>{8}}"\n\n\n',
    "<div class='a'>&nbsp;</div>\r\n",
    "SELECT * FROM t WHERE a='b';--",
    "https://example.org/a?b=c&d=%20#e",
    '{"k": [1, 2.5e-3, null]}',
    "$ ls -la | grep '^d' >> /dev/null 2>&1",
    "\\frac{a}{b}^{2} \\cdot x_{i}",
)
_SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\n\n",
    " \n ",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u0085",
    "\x0b",
    "        ",
)
_SPECIALS = (
    "<s>", "</s>", "<unk>", "<image>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>",
    "<|eot_id|>", "<|reserved_special_token_7|>", "<0x41>", "<0xE6>", "▁", "▁▁", "<pad>", "<Added>",
    "added", "[WORD]", "<|im_start", "<s", "<<s>>", "⟨left⟩", "⟨right⟩", "Ĝ", "Ġ",
)  # fmt: skip


def random_text(rng: random.Random) -> str:
    """One hard line: words of many scripts, code, emoji, white space, special tokens' texts, random bytes."""
    kinds: tuple[Callable[[], str], ...] = (
        lambda: " ".join(rng.choices(_WORDS, k=rng.randint(1, 8))),
        lambda: "".join(rng.choices(_WORDS, k=rng.randint(1, 3))),
        lambda: rng.choice(_SYMBOLS) * rng.randint(1, 3),
        lambda: rng.choice(_CODE),
        lambda: rng.choice(_SPACES) * rng.randint(1, 4),
        lambda: rng.choice(_SPECIALS),
        lambda: str(rng.randint(0, 10 ** rng.randint(1, 12))),
        lambda: "".join(chr(rng.randrange(0, 0x20)) for _ in range(rng.randint(1, 4))),
        lambda: rng.randbytes(rng.randint(1, 12)).decode("latin-1"),
        lambda: rng.randbytes(rng.randint(1, 12)).decode("utf-8", errors="replace"),
        lambda: "".join(_code_point(rng) for _ in range(rng.randint(1, 6))),
        lambda: "".join(chr(rng.randrange(0x300, 0x370)) for _ in range(rng.randint(1, 4))),
        lambda: "".join(chr(rng.randrange(0xAC00, 0xD7A4)) for _ in range(rng.randint(1, 4))),
        lambda: "".join(chr(rng.randrange(0x1100, 0x1200)) for _ in range(rng.randint(1, 4))),
        lambda: "".join(rng.choices("'\"-_.,:;!?()[]{}<>/\\|@#$%^&*+=~`", k=rng.randint(1, 6))),
    )
    return "".join(rng.choice(kinds)() for _ in range(rng.randint(1, 6)))


def _code_point(rng: random.Random) -> str:
    while True:
        value = rng.choice((rng.randrange(0x110000), rng.randrange(0x3000), rng.randrange(0x20000)))
        if not 0xD800 <= value < 0xE000:
            return chr(value)


@functools.cache
def mixed_lines(count: int, seed: int = 7) -> list[str]:
    """`count` hard lines."""
    rng = random.Random(seed)
    return [random_text(rng) for _ in range(count)]


def _training_lines() -> Iterator[str]:
    rng = random.Random(3)
    for _ in range(1500):
        yield " ".join(rng.choices(_WORDS, k=8)) + rng.choice(_CODE) + rng.choice(_SPACES) * rng.randint(1, 9)


def _trained(
    pre_tokenizer: Any, alphabet: Sequence[str], size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False)
    tokenizer.train_from_iterator(_training_lines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _byte_level(pre_tokenizer: Any, **model: Any) -> Tokenizer:
    vocab, merges = _trained(pre_tokenizer, pre_tokenizers.ByteLevel.alphabet(), 1500)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, **model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@functools.cache
def _sentencepiece() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary as SentencePiece writes it: three special tokens, 256 bytes, then pieces."""
    trained, merges = _trained(pre_tokenizers.Metaspace(split=False), ["▁"], 1800)
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Rare characters go out, so that bytes stand in for them.
    dropped = {text for text in trained if len(text) == 1 and (ord(text) > 0x5000 or text in "qQ½")}
    texts += [text for text in trained if not dropped & set(text)]
    kept = [pair for pair in merges if not dropped & set(pair[0] + pair[1])]
    return {text: number for number, text in enumerate(texts)}, kept


def _qwen2() -> Tokenizer:
    from transformers import Qwen2Tokenizer

    vocab, merges = _trained(_split(QWEN2), pre_tokenizers.ByteLevel.alphabet(), 1500)
    tokenizer: Tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<image>"])
    return tokenizer


def _llama3() -> Tokenizer:
    tokenizer = _byte_level(_split(LLAMA3), ignore_merges=True)
    specials = ["<|begin_of_text|>", "<|eot_id|>", *(f"<|reserved_special_token_{i}|>" for i in range(60))]
    tokenizer.add_special_tokens(specials)
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                special_tokens=[("<|begin_of_text|>", begin)],
            ),
        ]
    )
    return tokenizer


def _smollm() -> Tokenizer:
    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = _byte_level(pre_tokenizer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def _gpt2() -> Tokenizer:
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), unk_token="<|endoftext|>")
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def _o200k() -> Tokenizer:
    tokenizer = _byte_level(_split(O200K), ignore_merges=True)
    tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


def _llama_now() -> Tokenizer:
    from transformers import LlamaTokenizer

    vocab, merges = _sentencepiece()
    tokenizer: Tokenizer = LlamaTokenizer(vocab=vocab, merges=merges).backend_tokenizer
    return tokenizer


def _llama_with_normalizer() -> Tokenizer:
    """Llama-2 and Vicuna as most tokenizer.json have them."""
    vocab, merges = _sentencepiece()
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    # The flags that Llama's files have.
    tokenizer.add_special_tokens([AddedToken(text, normalized=True) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.add_tokens(["<pad>"])
    return tokenizer


def _flags() -> Tokenizer:
    """Every flag of added tokens, and a normalizer that changes them."""
    tokenizer = _byte_level(_split(LLAMA3))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.add_tokens(
        [
            AddedToken("<Added>", normalized=True),
            AddedToken("added", single_word=True, normalized=False),
            AddedToken("[WORD]", single_word=True, lstrip=True, rstrip=True, normalized=False),
            AddedToken("⟨left⟩", lstrip=True, normalized=False),
            AddedToken("⟨right⟩", rstrip=True, normalized=True),
            AddedToken("café", normalized=True),
            AddedToken("mod", normalized=False),
            AddedToken("model", normalized=False),
            AddedToken("  ", normalized=False),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken("<|im_start|>", rstrip=True), AddedToken("<s>", lstrip=True, special=True)]
    )
    return tokenizer


def _end_of_word() -> Tokenizer:
    """The first BPE models: suffixes of words, prefixes inside of them, unknown tokens."""
    vocab, merges = _trained(pre_tokenizers.WhitespaceSplit(), [], 900)
    ended = {text + "</w>": number for number, text in enumerate(vocab)}
    inside = {"##" + text: len(ended) + number for number, text in enumerate(vocab)}
    both = {**ended, **inside}
    for text in ("<unk>", *vocab, *("##" + text + "</w>" for text in vocab)):
        both.setdefault(text, len(both))
    kept = [(a, "##" + b) for a, b in merges if a + b in both]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=both,
            merges=kept,
            unk_token="<unk>",
            continuing_subword_prefix="##",
            end_of_word_suffix="</w>",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


QWEN2 = LLAMA3.replace("{1,3}", "")

TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "qwen2": _qwen2,
    "llama3": _llama3,
    "smollm": _smollm,
    "gpt2": _gpt2,
    "o200k": _o200k,
    "llama": _llama_now,
    "llama with a normalizer": _llama_with_normalizer,
    "flags": _flags,
    "end of word": _end_of_word,
}


@functools.cache
def tokenizer_json(name: str) -> str:
    """The tokenizer.json of one of `TOKENIZERS`."""
    return TOKENIZERS[name]().to_str()


class TextProbe(LineProbe):
    """The program probe_text, whose commands are in probe_text.cpp."""

    def load(self, text: str, folder: Path) -> None:
        """Load a tokenizer.json; AssertionError with the message where it is refused."""
        answer = self.try_load(text, folder)
        assert "error" not in answer, answer

    def try_load(self, text: str, folder: Path) -> dict[str, Any]:
        """The answer to the command `load`."""
        file = folder / "tokenizer.json"
        file.write_text(text, encoding="utf-8")
        return self.ask(load=str(file))
