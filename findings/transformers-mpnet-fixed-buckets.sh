#!/bin/sh
# transformers 5.24.0 with torch 2.13.0 (PyPI): MPNet's relative_attention_num_buckets
#
# MPNet adds a number to each score by the bucket of the distance between two tokens, as T5 does, and its config.json says
# how many buckets there are. One expects that a network with fewer buckets puts distances into fewer of them, as T5's
# does. The key, however, is the number of rows of the table alone: distances are always put into 32 buckets. With fewer
# rows a text cannot be read at all once it has a distance whose row is not there; with more rows those after the 32nd
# are never read, and nothing is said. In the same way token 1 counts as padding, which has no position of its own,
# whatever pad_token_id is. A converter that follows the configuration makes another network than the one that ran in
# training, so it has to refuse other values.
#
# Seen:
#   T5, 16 buckets: rows read 0 to 15
#   MPNet, 32 buckets: rows read 0 to 31
#   MPNet, 64 buckets: rows read 0 to 31
#   MPNet, 16 buckets: IndexError
#   pad_token_id 0, token 1 in the middle: positions 2 3 1 4
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install torch==2.13.0 transformers==5.24.0
cat > seen.py <<'PYTHON'
import torch
from transformers import MPNetConfig, MPNetModel, T5Config, T5EncoderModel
from transformers.models.mpnet.modeling_mpnet import create_position_ids_from_input_ids

LENGTH = 200  # tokens: distances of all buckets


def rows_read(table, run):
    """The rows of a table that have any influence."""
    table.weight.grad = None
    run().sum().backward()
    rows = table.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    return f"rows read {rows[0]} to {rows[-1]}"


torch.manual_seed(0)
tokens = torch.full((1, LENGTH), 5)
sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
t5 = T5EncoderModel(T5Config(**sizes, relative_attention_num_buckets=16)).eval()
own = t5.encoder.block[0].layer[0].SelfAttention
print("T5, 16 buckets:", rows_read(own.relative_attention_bias, lambda: own.compute_bias(LENGTH, LENGTH)))
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
for buckets in (32, 64, 16):
    model = MPNetModel(MPNetConfig(**sizes, relative_attention_num_buckets=buckets)).eval()
    encoder = model.encoder
    try:
        found = rows_read(
            encoder.relative_attention_bias, lambda: encoder.compute_position_bias(torch.zeros(1, LENGTH, 16))
        )
    except IndexError:
        found = "IndexError"
    print(f"MPNet, {buckets} buckets: {found}")
model = MPNetModel(MPNetConfig(**sizes, pad_token_id=0))
positions = create_position_ids_from_input_ids(torch.tensor([[5, 5, 1, 5]]), model.embeddings.padding_idx)
print("pad_token_id 0, token 1 in the middle: positions", *positions[0].tolist())
PYTHON
HF_HUB_OFFLINE=1 venv/bin/python seen.py > seen 2> log || { cat log >&2; exit 1; }
cat seen
diff - seen <<'SEEN'
T5, 16 buckets: rows read 0 to 15
MPNet, 32 buckets: rows read 0 to 31
MPNet, 64 buckets: rows read 0 to 31
MPNet, 16 buckets: IndexError
pad_token_id 0, token 1 in the middle: positions 2 3 1 4
SEEN
