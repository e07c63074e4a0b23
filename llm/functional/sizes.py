"""Sizes at which computations are split or recomputed, also for predicting memory without torch."""

CHUNK = 128  # tokens whose logits exist at once in the chunked loss
ROWS = 4096  # rows of the head whose gradient the chunked loss computes or converts at once
# `loss=auto` takes the chunked loss from this vocabulary on: it costs hardly any time, and all
# logits would take as much memory as the layers. Time of the full loss over the chunked one on a
# CPU (python -m benchmarks.functional): 0.79 at 4,096 tokens, 0.95 at 16,384, 1.00 at 50,304.
# torch's F.linear_cross_entropy took 2.6 times as long at 50,304.
LARGE_VOCABULARY = 16384
RECOMPUTED_FROM = 2**20  # numbers in a tensor (4 MiB); recomputing a smaller one saves little
PORTION = 2**20  # numbers converted to float32 at once when bfloat16 or 8-bit state is updated
STACKED = 2**22  # numbers in the matrices that Muon updates together (16 MiB)
# 8-bit optimizer state, as in bitsandbytes: smaller parameters have 32-bit state, and each block
# has one scale. PORTION is a multiple of the block.
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256  # numbers
BLOCK_4BIT = 64  # numbers with one scale in a frozen matrix of 4 bits (llm/model/quantised.py)
