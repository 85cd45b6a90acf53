"""Precisions: what a user writes, what they mean, and what their files are called.

`--precision vision=fp32,decoder=int4:block=128,asymmetric` names one precision per part of a bundle. A part
is one or two graphs that share a weight file. File suffixes are those of the transformers.js layout
(`DEFAULT_DTYPE_SUFFIX_MAPPING` of its `src/utils/dtypes.js`), so that its hosts find the graphs where they
look; there `_int8` and `_quantized` also hold activations in 8 bits, here 8 bits are about weights alone, and
the signed name is taken because a symmetric 8-bit weight is what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from calib.errors import OptionError
from runtime import contract

__all__ = [
    "BLOCKS",
    "CALIBRATED",
    "FLOAT32",
    "HALVES",
    "PARTS",
    "PRECISIONS",
    "SUFFIXES",
    "Precision",
    "Precisions",
    "data_file_of",
    "graph_file_of",
    "parse_precision",
    "spoken",
]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
"""Those that a build can make of the weights alone."""

CALIBRATED = ("w8a8", "fp8")
"""Weights and activations in 8 bits, integers or E4M3 floats: scales of activations come from data."""

SUFFIXES = {
    "fp32": "",
    "fp16": "_fp16",
    "bf16": "_bf16",
    "int8": "_int8",
    "int4": "_q4",
    "w8a8": "_w8a8",
    "fp8": "_fp8",
}
HALVES = ("fp16", "bf16")
BLOCKS = (32, 128)
PARTS = ("vision", "embed", "decoder")

_BITS = {"int8": 8, "int4": 4}
# Of MatMulNBits: how the activations go into a product. 0 leaves them in float32, 4 rounds them to 8 bits.
_ACCURACY_LEVELS = (0, 4)
_EXAMPLE = "vision=fp32,decoder=int4:block=32,symmetric"


@dataclass(frozen=True)
class Precision:
    """How the weights of one part are stored and multiplied.

    Attributes:
        name: one of `PRECISIONS` or `CALIBRATED`; int8 and int4 are about weights. Activations stay float32,
            or float16 in graphs for TensorRT, which have int4 alone, symmetric.
        block: weights of one row that share a scale; int8 and int4 only.
        symmetric: the zero point is the middle of the range; False stores one per block.
        accuracy_level: of MatMulNBits: 0 multiplies float32 activations, 4 rounds them to 8 bits, in blocks
            with a scale each, and adds integers. 4 is the default. Measured on 24 layers with Qwen2-0.5B
            widths and random weights, two cores with AVX-512 VNNI, ONNX Runtime 1.31.1, machine not idle: a
            token takes 54 ms instead of 623 (int8), 41 instead of 73 (int4). The mean cosine of the logits
            stays 0.871 with int4; with int8 (2 layers) it goes from 0.99983 to 0.99965.
    """

    name: str = "fp32"
    block: int = 32
    symmetric: bool = True
    accuracy_level: int = 4

    def __post_init__(self) -> None:
        if self.name not in (*PRECISIONS, *CALIBRATED):
            raise OptionError(
                f"precision is {self.name!r}, expected one of {', '.join(PRECISIONS)}, or fp8 with "
                f"`calib.quantize`, as in {_EXAMPLE}"
            )
        if self.block not in BLOCKS:
            raise OptionError(
                f"precision block is {self.block}, expected one of {', '.join(map(str, BLOCKS))}: leave it "
                "out for 32"
            )
        if self.accuracy_level not in _ACCURACY_LEVELS:
            raise OptionError(
                f"precision accuracy is {self.accuracy_level}, expected 0 (float32 activations) or 4 (8-bit "
                "activations)"
            )
        if not self.weight_only and replace(self, name="int4") != Precision("int4"):
            raise OptionError(
                f"precision {self.name} has no block, zero points or accuracy level: leave the options "
                "behind the colon out, or take int8 or int4"
            )

    @property
    def bits(self) -> int:
        """Bits of a stored weight."""
        return 8 if self.name in CALIBRATED else _BITS.get(self.name, 16 if self.name in HALVES else 32)

    @property
    def weight_only(self) -> bool:
        """Whether weights are integers with scales, and activations stay what they are."""
        return self.name in _BITS

    @property
    def suffix(self) -> str:
        """What a graph's file name carries."""
        return SUFFIXES[self.name]

    def text(self) -> str:
        """As on the command line."""
        words = [
            f"block={self.block}" if self.block != BLOCKS[0] else "",
            "" if self.symmetric else "asymmetric",
            "" if self.accuracy_level == 4 else f"accuracy={self.accuracy_level}",
        ]
        options = ",".join(word for word in words if word)
        return f"{self.name}:{options}" if options else self.name


@dataclass(frozen=True)
class Precisions:
    """One precision per part of a bundle."""

    vision: Precision = Precision()
    embed: Precision = Precision()
    decoder: Precision = Precision()

    def of_graph(self, graph: str) -> Precision:
        """Precision of a graph by its name in `runtime.contract`."""
        found: Precision = getattr(self, self.part_of(graph))
        return found

    @staticmethod
    def part_of(graph: str) -> str:
        """The part that a graph belongs to."""
        if graph in (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU):
            return "vision"
        return "embed" if graph == contract.EMBED_TOKENS else "decoder"

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each part's precision, in the order of `PARTS`."""
        return tuple(getattr(self, part).name for part in PARTS)

    @property
    def exact(self) -> bool:
        """Whether everything is float32."""
        return all(getattr(self, part).name == "fp32" for part in PARTS)

    @property
    def exact_text(self) -> bool:
        """Whether embedding and decoder are float32, so that their logits need no loss."""
        return self.embed.name == self.decoder.name == "fp32"

    def text(self) -> str:
        """As on the command line; empty for float32."""
        return "" if self.exact else ",".join(f"{part}={getattr(self, part).text()}" for part in PARTS)


FLOAT32 = Precisions()


def parse_precision(text: str, rest: Precision | None = None) -> Precisions:
    """Read `--precision`.

    `part=name[:option,option]`, comma-separated; a bare name is for every part. Options: `block=32|128`,
    `symmetric`, `asymmetric`, `accuracy=0|4`. Parts left out are `rest`, None for fp32, but `embed` follows
    `decoder`, with which it shares its weights in most models; with a `rest` not into int8 and int4.

    Raises:
        OptionError: an unknown part, precision or option, or a part twice.
    """
    parts: dict[str, Precision] = {}
    current = ""
    for word in (word.strip() for word in text.split(",")):
        name, equals, value = word.partition("=")
        if current and (word in ("symmetric", "asymmetric") or (equals and name in ("block", "accuracy"))):
            parts[current] = _with_option(parts[current], word)
            continue
        current, value = (name, value) if equals and ":" not in name else ("", word)
        if current not in ("", *PARTS):
            raise OptionError(
                f"precision is given for {current!r}, expected one of {', '.join(PARTS)}, as in {_EXAMPLE}"
            )
        if current in parts:
            raise OptionError(f"precision is given twice for {current or 'every part'}: give it once")
        kind, colon, option = value.partition(":")
        parts[current] = Precision(kind)
        if colon:
            parts[current] = _with_option(parts[current], option)
    everything = parts.pop("", rest or Precision())
    chosen = {part: parts.get(part, everything) for part in PARTS}
    if "embed" not in parts:
        follows = rest is None or "decoder" not in parts or not chosen["decoder"].weight_only
        chosen["embed"] = chosen["decoder"] if follows else everything
    return Precisions(**chosen)


def _with_option(precision: Precision, word: str) -> Precision:
    name, _, value = word.partition("=")
    if word in ("symmetric", "asymmetric"):
        return replace(precision, symmetric=word == "symmetric")
    if name in ("block", "accuracy") and value.isdigit():
        number = int(value)
        return (
            replace(precision, block=number) if name == "block" else replace(precision, accuracy_level=number)
        )
    raise OptionError(
        f"precision has the option {word!r}, expected block=32, block=128, symmetric, asymmetric, accuracy=0 "
        f"or accuracy=4, as in {_EXAMPLE}"
    )


def spoken(name: str) -> str:
    """What users and chips call a precision: `w8a8` is int8 to them."""
    return "int8" if name == "w8a8" else name


def graph_file_of(graph: str, precision: Precision) -> str:
    """Path of a graph inside a bundle, with the suffix of its precision."""
    return contract.graph_file(graph + precision.suffix)


def data_file_of(graph: str, precision: Precision) -> str:
    """Path of the file with a graph's weights inside a bundle, with the suffix of its precision."""
    return contract.data_file(graph).removesuffix(".onnx_data") + f"{precision.suffix}.onnx_data"
