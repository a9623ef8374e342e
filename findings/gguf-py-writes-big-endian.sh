#!/bin/sh
# gguf 0.17.1 (PyPI), GGUFWriter(endianess=GGUFEndian.BIG)
#
# Two things happen that one would not expect of a writer that takes an array and a byte order:
#
# 1. add_tensor() swaps the bytes of the caller's own float array, in place. A caller that uses the array afterwards (to quantize
#    it for the next tensor, to compare with what was written) computes with garbage, without a word.
# 2. Tensors that are quantized already come as bytes, and bytes are not swapped: the float16 scale of each block stays
#    little-endian in a file whose header, metadata and float tensors are big-endian. GGUFReader gives them back as they
#    are, so the same package reads them rightly on a little-endian machine; a tool that swaps "the other way round",
#    scales included, ruins the file.
#
# Seen:
#   float32: the caller's array after add_tensor: changed
#   Q8_0: bytes in the big-endian file: those of the little-endian one
#   float32: bytes in the big-endian file: others
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install gguf==0.17.1 'numpy>=2,<3'
cat > seen.py <<'PYTHON'
import gguf
import numpy as np

Q8_0 = gguf.GGMLQuantizationType.Q8_0
values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
blocks = gguf.quants.quantize(values, Q8_0)


def write(path, byte_order):
    given = values.copy()
    writer = gguf.GGUFWriter(path, "llama", endianess=byte_order)
    writer.add_tensor("float32", given)
    writer.add_tensor("Q8_0", blocks.copy(), raw_dtype=Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return np.array_equal(given, values), {t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors}


kept, little = write("little.gguf", gguf.GGUFEndian.LITTLE)
assert kept, "the little-endian writer changes its input, too"
kept, big = write("big.gguf", gguf.GGUFEndian.BIG)
print("float32: the caller's array after add_tensor:", "as it was" if kept else "changed")
for name in ("Q8_0", "float32"):
    same = "those of the little-endian one" if big[name] == little[name] else "others"
    print(f"{name}: bytes in the big-endian file: {same}")
PYTHON
venv/bin/python seen.py > seen
cat seen
diff - seen <<'SEEN'
float32: the caller's array after add_tensor: changed
Q8_0: bytes in the big-endian file: those of the little-endian one
float32: bytes in the big-endian file: others
SEEN
