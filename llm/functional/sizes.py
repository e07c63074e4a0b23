"""Sizes at which computations are split or recomputed; without torch, to predict memory by them."""

CHUNK = 128  # tokens whose logits exist at once in the chunked loss
ROWS = 4096  # rows of the head whose gradient the chunked loss computes, or converts, at once
# `loss=auto` takes the chunked loss from this vocabulary on: it costs no noticeable time, and all
# logits would weigh as much as the layers. Time of the full loss over the chunked one on a CPU
# (python -m benchmarks.functional): 0.79 at 4,096 tokens, 0.95 at 16,384, 1.00 at 50,304. torch's
# own F.linear_cross_entropy took 2.6 times as long at 50,304.
LARGE_VOCABULARY = 16384
RECOMPUTED_FROM = 2**20  # numbers in a tensor (4 MiB): recomputing smaller ones saves little
PORTION = 2**20  # numbers converted to float32 at once when bfloat16 or 8-bit state is updated
STACKED = 2**22  # numbers in the matrices that Muon updates together (16 MiB)
# Of 8-bit optimizer state, as bitsandbytes has it: smaller parameters keep 32-bit state; one scale
# is stored for each block. PORTION is a multiple of the block.
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256  # numbers
