"""Logits and loss equal those of transformers' GPT-2, Llama and Qwen3 with the same weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm.functional import IGNORED
from llm.model.gpt import GPT

SHAPE: dict[str, Any] = {
    "n_layer": 3, "n_embed": 48, "n_head": 4, "head_size": 12, "block_size": 24, "vocab_size": 61,
}  # fmt: skip
GPT2_STYLE: dict[str, Any] = {
    "norm": "layernorm", "mlp": "gelu", "position": "learned", "bias": True,
}  # fmt: skip
GPT2_NAMES = {"attention_norm": "ln_1", "attention.o": "attn.c_proj", "mlp_norm": "ln_2",
              "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}  # fmt: skip
LLAMA_NAMES = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
               **{f"attention.{n}": f"self_attn.{n}_proj" for n in "qkvo"},
               **{f"attention.{n}": f"self_attn.{n}" for n in ("q_norm", "k_norm")},
               **{f"mlp.{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")}}  # fmt: skip


def randomised(model: GPT) -> GPT:
    """Random weights, also in norms and biases, whose initial values would hide mistakes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.eval()


def as_gpt2(ours: GPT) -> dict[str, Tensor]:
    """Our weights under GPT-2's names: Conv1D has them transposed, and c_attn joins q, k and v."""
    state = ours.state_dict()
    theirs = {"wte.weight": state["embed.weight"], "wpe.weight": state["position.weight"]}
    for kind in ("weight", "bias"):
        theirs[f"ln_f.{kind}"] = state[f"norm.{kind}"]
        for i in range(ours.config.n_layer):
            for mine, name in GPT2_NAMES.items():
                theirs[f"h.{i}.{name}.{kind}"] = state[f"blocks.{i}.{mine}.{kind}"].t()
            joined = torch.cat([state[f"blocks.{i}.attention.{n}.{kind}"] for n in "qkv"])
            theirs[f"h.{i}.attn.c_attn.{kind}"] = joined.t()
    return {f"transformer.{name}": tensor for name, tensor in theirs.items()}


def as_llama(ours: GPT) -> dict[str, Tensor]:
    """Our weights under the names of Llama and Qwen3."""
    state = ours.state_dict()
    theirs = {"model.embed_tokens.weight": state.pop("embed.weight"),
              "model.norm.weight": state.pop("norm.weight")}  # fmt: skip
    if not ours.config.tie_embeddings:
        theirs["lm_head.weight"] = state.pop("head.weight")
    for name, tensor in state.items():
        _, layer, rest = name.split(".", 2)
        part, _, kind = rest.rpartition(".")
        theirs[f"model.layers.{layer}.{LLAMA_NAMES[part]}.{kind}"] = tensor
    return theirs


def filled(theirs: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """``theirs`` with our weights; only a tied head may be missing."""
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    tied = getattr(theirs.config, "tie_word_embeddings", False)
    assert set(missing) <= ({"lm_head.weight"} if tied else set())
    assert not unexpected
    return theirs.eval()


def assert_same(ours: GPT, theirs: nn.Module) -> None:
    """Logits and loss agree, the loss also where some targets are ignored."""
    tokens = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        found, wanted = ours(tokens), theirs(input_ids=tokens).logits
    assert wanted.std() > 0.5  # not a comparison of zeros
    assert (found - wanted).abs().max() < 3e-5  # of up to 5: sums in another order

    labels = tokens.clone()
    labels[0, 5:9] = labels[2, 20:] = -100
    targets = labels[:, 1:].masked_fill(labels[:, 1:] == -100, IGNORED)
    with torch.no_grad():
        loss = ours(tokens[:, :-1], targets)
        wanted = theirs(input_ids=tokens, labels=labels).loss
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)


def llama_config(ours: GPT) -> dict[str, Any]:
    """The shape as keyword arguments of transformers."""
    config = ours.config
    return {
        "vocab_size": config.vocab_size, "hidden_size": config.n_embed,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head, "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_size, "max_position_embeddings": config.block_size,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "attention_bias": config.bias, "attention_dropout": 0.0, "hidden_act": "silu",
    }  # fmt: skip


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits_and_loss_equal_those_of_gpt2(tied: bool) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = randomised(GPT(**SHAPE, **GPT2_STYLE, tie_embeddings=tied))
    config = GPT2Config(
        vocab_size=61, n_positions=24, n_embd=48, n_layer=3, n_head=4, tie_word_embeddings=tied,
        activation_function="gelu_new", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        layer_norm_epsilon=1e-5, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    head = {} if tied else {"lm_head.weight": ours.state_dict()["head.weight"]}
    assert_same(ours, filled(GPT2LMHeadModel(config), as_gpt2(ours) | head))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="tied"),
        pytest.param({"tie_embeddings": False}, id="untied"),
        pytest.param({"n_kv_head": 2}, id="two heads share keys and values"),
        pytest.param({"n_kv_head": 1, "tie_embeddings": False}, id="all share them, untied"),
        pytest.param({"bias": True}, id="biased"),
        pytest.param({"head_size": 32}, id="heads wider than the model"),
    ],
)
def test_logits_and_loss_equal_those_of_llama(options: dict[str, Any]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = randomised(GPT(**SHAPE | options))
    config = LlamaConfig(**llama_config(ours), mlp_bias=ours.config.bias)
    assert_same(ours, filled(LlamaForCausalLM(config), as_llama(ours)))


@pytest.mark.parametrize("options", [{}, {"n_kv_head": 2, "tie_embeddings": False}], ids=str)
def test_logits_and_loss_equal_those_of_qwen3(options: dict[str, Any]) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    ours = randomised(GPT(**SHAPE, **options, qk_norm=True))
    config = Qwen3Config(**llama_config(ours), use_sliding_window=False)
    assert_same(ours, filled(Qwen3ForCausalLM(config), as_llama(ours)))
