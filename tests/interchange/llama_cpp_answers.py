"""llama.cpp's answers for GGUF files, in an interpreter that has llama-cpp-python.

Standard input: a JSON list of {"file", "text", "ids"}. Writes ``<file>.npz`` with ``ids`` of the
text, ``decoded`` bytes, ``logits`` (T, vocab) after each of ``ids``, and ``greedy``, the 16 tokens
that follow.
"""

import json
import sys

import llama_cpp
import numpy as np

for case in json.load(sys.stdin):
    model = llama_cpp.Llama(case["file"], n_ctx=256, logits_all=True, verbose=False, n_threads=1)
    ids = model.tokenize(case["text"].encode(), add_bos=False, special=False)
    model.eval(case["ids"])
    logits, greedy = np.array(model.scores[: len(case["ids"])]), []
    for _ in range(16):
        greedy.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(greedy[-1:])
    np.savez(case["file"] + ".npz", ids=ids, logits=logits, greedy=greedy,
             decoded=np.frombuffer(model.detokenize(ids), np.uint8),
             ends=[model.token_bos(), model.token_eos()])  # fmt: skip
