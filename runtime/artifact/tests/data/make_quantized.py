"""Writes quantized/NAME/: one matrix `m` in each layout of quantised checkpoints, made from known integers, and what it is.

`expected.values`, `expected.scales` and `expected.zeros` are the integers and scales that the matrix was made from, and
`expected.numbers` is `scale * (value - zero)` in f32. The layouts are packed here after the published formulas:
AutoGPTQ's `QuantLinear.pack` (gptq; zeros are stored less one in version 1), AutoAWQ's `WQLinear_GEMM.from_linear` (awq),
compressed-tensors' `pack_to_int32` (pack-quantized) and its int-quantized, which packs nothing. E4M3 (fp8, float-quantized)
is ml_dtypes' float8_e4m3fn, with a scale for a block, a row or all.

Made with numpy 2, safetensors 0.8 and ml_dtypes 0.5: `pip install numpy safetensors ml_dtypes && python make_quantized.py`.
"""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

N, K = 24, 128
HERE = Path(__file__).parent / "quantized"
random = np.random.default_rng(11)


def pack(fields: np.ndarray, bits: int, axis: int, order=None) -> np.ndarray:
    """Fields that are adjacent along an axis as int32 words, the first in the low bits; or field order[i] in place i."""
    each = 32 // bits
    fields = np.moveaxis(fields, axis, -1).astype(np.uint32)
    padding = -fields.shape[-1] % each
    fields = np.pad(fields, [(0, 0)] * (fields.ndim - 1) + [(0, padding)])
    fields = fields.reshape(*fields.shape[:-1], -1, each)
    words = np.zeros(fields.shape[:-1], np.uint32)
    for place in range(each):
        words |= fields[..., place if order is None else order[place]] << np.uint32(bits * place)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def matrix(bits: int, group: int, symmetric: bool, order=None):
    """Values [N, K], scales and zeros [N, K/group], and the numbers that they stand for."""
    values = random.integers(0, 1 << bits, (N, K))
    groups = K // group
    scales = (random.random((N, groups)) / 50 + 1e-3).astype(np.float16)
    zeros = np.full((N, groups), 1 << (bits - 1)) if symmetric else random.integers(0, 1 << bits, (N, groups))
    of = np.arange(K) // group if order is None else order
    numbers = (values - zeros[:, of]).astype(np.float32) * scales.astype(np.float32)[:, of]
    return values, scales, zeros, numbers


def save(name: str, config: dict, tensors: dict, values, scales, zeros, numbers):
    directory = HERE / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"quantization_config": config}, indent=1) + "\n")
    expected = {"values": values.astype(np.uint8), "scales": scales, "numbers": numbers, "zeros": zeros.astype(np.float16)}
    tensors = tensors | {f"expected.{key}": np.ascontiguousarray(value) for key, value in expected.items()}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, directory / "model.safetensors")


def gptq(name: str, bits: int, group: int, symmetric: bool, version: int, act_order: bool):
    order = random.permutation(np.arange(K) // group) if act_order else None
    values, scales, zeros, numbers = matrix(bits, group, symmetric, order)
    stored_zeros = (zeros - 1) % (1 << bits) if version == 1 else zeros
    config = {"quant_method": "gptq", "bits": bits, "group_size": -1 if group == K else group, "desc_act": act_order,
              "sym": symmetric, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    g_idx = np.arange(K) // group if order is None else order
    tensors = {
        "m.qweight": pack(values.T, bits, axis=0),
        "m.qzeros": pack(stored_zeros.T, bits, axis=1),
        "m.scales": scales.T,
        "m.g_idx": g_idx.astype(np.int32),
        "m.bias": np.zeros(N, np.float16),
    }
    save(name, config, tensors, values, scales, zeros, numbers)


def awq(name: str, group: int):
    made = values, scales, zeros, _ = matrix(4, group, False)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
              "modules_to_not_convert": ["lm_head"]}
    tensors = {
        "m.qweight": pack(values.T, 4, axis=1, order=order),
        "m.qzeros": pack(zeros.T, 4, axis=1, order=order),
        "m.scales": scales.T,
    }
    save(name, config, tensors, *made)


def compressed(weights: dict, activations, form: str) -> dict:
    group = {"targets": ["Linear"], "weights": {"type": "int", "dynamic": False} | weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def packed(name: str, bits: int, group: int, symmetric: bool):
    made = values, scales, zeros, _ = matrix(bits, group, symmetric)
    weights = {"num_bits": bits, "symmetric": symmetric}
    weights |= {"strategy": "channel"} if group == K else {"strategy": "group", "group_size": group}
    tensors = {
        "m.weight_packed": pack(values, bits, axis=1),
        "m.weight_scale": scales,
        "m.weight_shape": np.array([N, K], np.int64),
    }
    if not symmetric:
        tensors["m.weight_zero_point"] = pack(zeros, bits, axis=0)
    save(name, compressed(weights, None, "pack-quantized"), tensors, *made)


def int8(name: str):
    values = random.integers(-128, 128, (N, K)).astype(np.int8)
    scales = (random.random((N, 1)) / 500 + 1e-4).astype(np.float16)
    numbers = values.astype(np.float32) * scales.astype(np.float32)
    weights = {"num_bits": 8, "symmetric": True, "strategy": "channel"}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    tensors = {"m.weight": values, "m.weight_scale": scales}
    config = compressed(weights, activations, "int-quantized")
    save(name, config, tensors, values.view(np.uint8), scales.astype(np.float32)[:, 0], np.zeros((N, 1)), numbers)


def e4m3(name: str, config: dict, scale_name: str, blocks: tuple[int, int], shape=None):
    bits = random.integers(0, 256, (N, K)).astype(np.uint8)
    bits[bits & 0x7F == 0x7F] = 0  # no number
    values = bits.view(ml_dtypes.float8_e4m3fn)
    grid = -(-N // blocks[0]), -(-K // blocks[1])
    scales = (random.random(grid) / 500 + 1e-4).astype(np.float32)
    each = scales[np.arange(N) // blocks[0]][:, np.arange(K) // blocks[1]]
    numbers = values.astype(np.float32) * each
    tensors = {"m.weight": values, f"m.{scale_name}": scales.reshape(scales.shape if shape is None else shape)}
    if config.get("activation_scheme") == "static":
        tensors["m.input_scale"] = np.ones((), np.float32)
    save(name, config, tensors, bits, each[:, 0], np.zeros((N, 1)), numbers)


gptq("gptq-4-32-symmetric", 4, 32, True, 1, False)
gptq("gptq-4-64", 4, 64, False, 1, False)
gptq("gptq-8-128", 8, 128, False, 2, False)
gptq("gptq-4-32-act-order", 4, 32, False, 1, True)
awq("awq-4-64", 64)
packed("packed-4-32", 4, 32, True)
packed("packed-4-64-zeros", 4, 64, False)
packed("packed-8-all", 8, K, True)
int8("int8")
e4m3("fp8-blocks", {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 48]},
     "weight_scale_inv", (16, 48))
e4m3("fp8-one", {"quant_method": "fp8", "activation_scheme": "static"}, "weight_scale", (N, K), ())
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
e4m3("float-rows", compressed(FLOAT | {"strategy": "channel"}, FLOAT | {"dynamic": True, "strategy": "token"}, "float-quantized"),
     "weight_scale", (1, K))
