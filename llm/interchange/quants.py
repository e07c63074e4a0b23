"""GGUF's types of tensors: blocks of quantised weights become float32.

Layouts: ggml-common.h of https://github.com/ggml-org/ggml. All blocks are little-endian; ``d`` and
``m`` are the scale and the offset of a block in float16.
"""

from collections.abc import Callable

import numpy as np

# Numbers of the types in a file. The ones without a block below are refused by name.
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
# Weights and bytes of a block.
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18),
    "Q4_1": (32, 20), "Q4_K": (256, 144), "Q6_K": (256, 210),
}  # fmt: skip

CHUNK = 1 << 17  # weights at a time, so that intermediate values stay in the processor's cache


def dequantize(raw: np.ndarray, kind: str) -> np.ndarray:
    """Bytes (uint8) of whole blocks -> float32 weights, flat."""
    if kind == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind == "BF16":  # the upper half of a float32
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    per_block, size = BLOCKS[kind]
    blocks = raw.reshape(-1, size)
    weights = np.empty((len(blocks), per_block), dtype=np.float32)
    rows = CHUNK // per_block
    with np.errstate(invalid="ignore", over="ignore"):  # refused later, by the tensor's name
        for start in range(0, len(blocks), rows):
            part = DEQUANTIZE[kind](blocks[start : start + rows])
            weights[start : start + rows] = part.reshape(-1, per_block)
    return weights.reshape(-1)


def _half(two_bytes: np.ndarray) -> np.ndarray:
    """(n, 2) bytes -> (n, 1) float32."""
    halves: np.ndarray = np.ascontiguousarray(two_bytes).view("<f2").astype(np.float32)
    return halves


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """(n, b) bytes -> (n, 2 b) numbers below 16: the lower halves, then the upper ones."""
    return np.concatenate((raw & 15, raw >> 4), axis=-1)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    weights = blocks[:, 2:].view(np.int8).astype(np.float32)
    weights *= _half(blocks[:, :2])
    return weights


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    weights = _nibbles(blocks[:, 2:]).astype(np.float32)
    weights -= 8
    weights *= _half(blocks[:, :2])
    return weights


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    weights = _nibbles(blocks[:, 4:]).astype(np.float32)
    weights *= _half(blocks[:, :2])
    weights += _half(blocks[:, 2:4])
    return weights


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    # 8 groups of 32 weights; 12 bytes hold a scale and an offset of 6 bits for each group.
    d, m = _half(blocks[:, :2]), _half(blocks[:, 2:4])
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((low & 63, high & 15 | low >> 2 & 48), axis=1)
    offsets = np.concatenate((middle & 63, high >> 4 | middle >> 2 & 48), axis=1)
    weights = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32).astype(np.float32)
    weights *= (d * scales)[:, :, None]
    weights -= (m * offsets)[:, :, None]
    return weights


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    # 16 groups of 16 weights, in two halves: 4 lower bits in one place, 2 upper ones in another.
    lower = _nibbles(blocks[:, :128].reshape(-1, 2, 64))
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    upper = (pairs >> shifts & 3).reshape(-1, 2, 128)
    weights: np.ndarray = (lower | upper << 4).reshape(-1, 16, 16).astype(np.float32)
    weights -= 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    weights *= (_half(blocks[:, 208:]) * scales)[:, :, None]
    return weights


DEQUANTIZE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k, "Q6_K": _q6_k,
}  # fmt: skip
