"""What each target takes, as data.

[doc]: the operator table and changelog of TensorRT's ONNX parser (onnx/onnx-tensorrt: docs/operators.md at
10.1 and 10.15, docs/Changelog.md). [run]: seen with TensorRT for RTX 1.7.1 or ONNX Runtime 1.31.1.
[unverified]: concluded from these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import onnx_ir as ir

__all__ = [
    "DTYPES",
    "INTEGER_MATH_REFUSED",
    "ONE_OUTPUT_ONLY",
    "OP_RELEASES",
    "ORT_OPS",
    "PRECISION_CHIPS",
    "TARGETS",
    "UNSUPPORTED_OPS",
    "Family",
    "Release",
    "Target",
]

Family = Literal["tensorrt", "tensorrt-rtx", "ort"]
Release = tuple[int, int]

PRECISION_CHIPS: Mapping[str, int] = MappingProxyType(
    {"fp32": 0, "fp16": 0, "int8": 0, "bf16": 80, "int4": 80, "fp8": 89}
)
"""First chip (SM) that computes in a precision: bf16, int4 and fp8 by the support matrix of TensorRT for RTX
[doc], which has SM75, 86, 89 and 120; that SM80, 87, 90 and 110 fit in between is [unverified]. TensorRT for
RTX 1.7.1 builds fp8 for SM89 and SM120, not for SM86, and the others for SM86 [run]."""


@dataclass(frozen=True)
class Target:
    """Something that a graph is handed to.

    Attributes:
        name: as in `--target`.
        family: which rules apply, and how gravely.
        title: product, release and devices, in words.
        release: TensorRT release whose parser reads the graph; None for ONNX Runtime. For TensorRT for RTX
            the release whose operators its parser has.
        min_opset, max_opset: range of default-domain opsets.
        opset_source: where the range comes from, in words.
        opset_certain: whether a later opset is outside what is documented or seen; else it is a warning.
        max_ir: greatest IR version, None where nothing checks it.
        topk_limit: greatest K of a TopK, None for no limit.
        domains: operator domains besides the default one.
        sms: the chips it runs on, empty where there is no chip to speak of.
        precision: of graphs that are built for it, unless the user says otherwise.
        workspace: bytes of scratch memory that a tactic may take, 0 where that is no notion. A bound, not a
            reservation; half a Jetson's free memory would leave no room for the weights.
    """

    name: str
    family: Family
    title: str
    release: Release | None
    min_opset: int
    max_opset: int
    opset_source: str
    opset_certain: bool = True
    max_ir: int | None = None
    topk_limit: int | None = None
    domains: frozenset[str] = frozenset()
    sms: tuple[int, ...] = ()
    precision: str = "fp16"
    workspace: int = 0

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names in `PRECISION_CHIPS` that at least one of its chips computes in."""
        return tuple(name for name in PRECISION_CHIPS if not self.sms or self.lacking(name) != self.sms)

    def lacking(self, precision: str) -> tuple[int, ...]:
        """Its chips that do not compute in a precision."""
        return tuple(sm for sm in self.sms if sm < PRECISION_CHIPS[precision])

    def before(self, major: int, minor: int) -> bool:
        """Whether the parser of this target is older than a release."""
        return self.release is not None and self.release < (major, minor)


_PARSER_LIMIT = 3839  # [doc] "K input must be less than 3840"
_RTX_LIMIT = 3840  # [run] 3840 builds, 3841 is refused

_EARLY_10 = "documented for the parser of TensorRT 10.0 and 10.1; 10.3 is taken to be the same"

_TARGETS = (
    Target(
        "jetpack6",
        "tensorrt",
        "JetPack 6.1 and 6.2: TensorRT 10.3 on Orin (SM87)",
        release=(10, 3),
        min_opset=9,
        max_opset=20,
        opset_source=_EARLY_10,
        topk_limit=_PARSER_LIMIT,
        sms=(87,),
        workspace=1 << 30,
    ),
    Target(
        "jetpack7",
        "tensorrt",
        "JetPack 7: TensorRT 10.13 (7.0, 7.1) and 10.16 (7.2) on Thor (SM110) and Orin (SM87), checked "
        "against 10.13",
        release=(10, 13),
        min_opset=9,
        max_opset=23,
        # [unverified] at 10.11 the changelog moves to ONNX 1.18, whose newest opset is 23; 10.15 documents 24
        opset_source="the parser is built with ONNX 1.18 since 10.11; no range is documented for 10.13",
        opset_certain=False,
        topk_limit=_PARSER_LIMIT,
        sms=(87, 110),
        workspace=2 << 30,
    ),
    Target(
        "tensorrt10",
        "tensorrt",
        "any TensorRT 10 from 10.3 on, checked against 10.3: what its parser takes, later ones take",
        release=(10, 3),
        min_opset=9,
        max_opset=20,
        opset_source=_EARLY_10,
        topk_limit=_PARSER_LIMIT,
        sms=(75, 80, 86, 87, 89, 90, 100, 110, 120),
        workspace=4 << 30,
    ),
    Target(
        "tensorrt11",
        "tensorrt",
        "TensorRT 11, checked against 11.0",
        release=(11, 0),
        min_opset=9,
        max_opset=24,
        opset_source="documented for the parser of 10.15 and 11.1",
        topk_limit=_PARSER_LIMIT,
        sms=(75, 80, 86, 87, 89, 90, 100, 110, 120),
        workspace=4 << 30,
    ),
    Target(
        "tensorrt-rtx",
        "tensorrt-rtx",
        "TensorRT for RTX 1.7.1 (SM75 to SM121, not Jetson)",
        release=(11, 0),
        min_opset=9,
        max_opset=24,
        opset_source="the newest opset that was tried; its parser checks none",
        opset_certain=False,
        topk_limit=_RTX_LIMIT,
        sms=(75, 80, 86, 89, 120, 121),
        workspace=4 << 30,
    ),
    Target(
        "ort",
        "ort",
        "ONNX Runtime 1.31.1, CPU and CUDA",
        release=None,
        min_opset=7,
        max_opset=26,
        opset_source="the newest opset that 1.31.1 loads",
        max_ir=13,
        domains=frozenset({"com.microsoft", "ai.onnx.ml", "com.microsoft.nchwc", "com.ms.internal.nhwc"}),
        precision="fp32",
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _TARGETS})

OP_RELEASES: Mapping[str, Release] = MappingProxyType(
    {
        # first TensorRT release whose parser takes the operator [doc]; those of 10.0 and before are left out
        "DeformConv": (10, 1),
        "BlackmanWindow": (10, 4),
        "HammingWindow": (10, 4),
        "HannWindow": (10, 4),
        "STFT": (10, 5),
        "Attention": (10, 14),
        "RMSNormalization": (10, 15),
        "RotaryEmbedding": (10, 15),
        "TensorScatter": (10, 15),
        "Swish": (11, 0),
        "TRT_Attention": (11, 0),
        "TRT_KVCacheUpdate": (11, 0),
        "TRT_MoE": (11, 0),
    }
)

# "N" in the parser's table at 10.1 and still at 10.15 [doc]; Compress, Unique and DynamicQuantizeLinear have
# rules of their own
_UNSUPPORTED = """
AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im
ConcatFromSequence ConvInteger DFT Det ImageDecoder MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix
Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv
QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert
SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer
StringSplit TfIdfVectorizer
"""
UNSUPPORTED_OPS = frozenset(_UNSUPPORTED.split())

ORT_OPS = frozenset({"SimplifiedLayerNormalization"})
"""Operators that ONNX Runtime keeps in the default domain although ONNX has none of that name [run]."""

ONE_OUTPUT_ONLY = frozenset({"LayerNormalization", "MaxPool"})
"""Operators of which the parser takes the first output only [doc]."""

INTEGER_MATH_REFUSED = frozenset({"MatMul", "Gemm", "Einsum", "PRelu"})
"""Operators that take integers in ONNX, but not in the parser's table [doc]; MatMul and Einsum [run]."""

_COMMON = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.INT8,
    ir.DataType.INT4,
    ir.DataType.UINT8,
    ir.DataType.BOOL,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.DOUBLE,
)

DTYPES: Mapping[ir.DataType, Release] = MappingProxyType(
    {**dict.fromkeys(_COMMON, (10, 0)), ir.DataType.FLOAT4E2M1: (10, 8)}
)
"""First TensorRT release whose parser knows the element type [doc]."""
