"""Writes blocks.gguf: a tensor of random blocks in every encoding that is read, and the f32 numbers that gguf-py says they are.

Made with gguf 0.19.0 and numpy 2: `pip install gguf numpy && python make_blocks_gguf.py`.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFWriter
from gguf.quants import dequantize

ROWS, COLUMNS = 3, 512
# Where the f16 scales of a block are: random bits there would be infinities.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}

random = np.random.default_rng(7)
writer = GGUFWriter(Path(__file__).parent / "blocks.gguf", "blocks")
writer.add_array("list", ["a", "b"])
writer.add_float32("epsilon", 1e-5)
for kind, places in SCALES.items():
    block, size = GGML_QUANT_SIZES[kind]
    stored = random.integers(0, 256, (ROWS, COLUMNS // block, size), dtype=np.uint8)
    for at in places:
        scales = random.normal(0, 0.1, (ROWS, COLUMNS // block, 1)).astype(np.float16)
        stored[:, :, at : at + 2] = scales.view(np.uint8)
    stored = stored.reshape(ROWS, -1)
    writer.add_tensor(f"{kind.name}.stored", stored, raw_dtype=kind)
    writer.add_tensor(f"{kind.name}.numbers", dequantize(stored, kind).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
