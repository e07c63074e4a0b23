"""LoRA, rsLoRA and DoRA: equal to peft's, merged equals adapted, and only adapters are trained."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.errors import Refused
from llm.model.finetune import FinetuneOptions
from llm.model.gpt import GPT
from llm.model.layers import Linear
from llm.model.lora import Adapted, adapt, merge, merged_weights, trained_weights
from llm.sampling.layout import lay_out_for_decoding
from llm.training.muon import split
from llm.training.optimizer import muon
from tests.model.test_reference import LLAMA_NAMES, as_llama, filled, randomised

SHAPE: dict[str, Any] = {
    "n_layer": 2, "n_embed": 32, "n_head": 4, "head_size": 8, "n_kv_head": 2, "block_size": 16,
    "vocab_size": 61,
}  # fmt: skip
GPT2: dict[str, Any] = SHAPE | {
    "norm": "layernorm", "mlp": "gelu", "position": "learned", "bias": True,
}  # fmt: skip
METHODS = {
    "lora": FinetuneOptions("lora", rank=4, alpha=6.0),
    "rslora": FinetuneOptions("lora", rank=4, alpha=6.0, rslora=True),
    "dora": FinetuneOptions("dora", rank=4, alpha=6.0),
}
TOKENS = torch.randint(0, 61, (3, 16), generator=torch.Generator().manual_seed(1))


def tuned(options: FinetuneOptions, **shape: Any) -> GPT:
    """An adapted network that is some steps away from its base: B is not zero."""
    torch.manual_seed(3)
    model = adapt(randomised(GPT(**(shape or SHAPE))), options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in trained_weights(model).values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def loss_of(model: GPT) -> Tensor:
    return model(TOKENS[:, :-1], TOKENS[:, 1:])


@pytest.fixture
def peft() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft reads names that transformers has deprecated
        yield pytest.importorskip("peft")


def with_peft(model: GPT, method: str, peft: Any) -> Any:
    """The same network and adapters in transformers and peft."""
    transformers = pytest.importorskip("transformers")
    c, o = model.config, METHODS[method]
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.n_embed, intermediate_size=c.intermediate_size,
        num_hidden_layers=c.n_layer, num_attention_heads=c.n_head, head_dim=c.head_size,
        num_key_value_heads=c.n_kv_head, tie_word_embeddings=True, rms_norm_eps=1e-6,
        max_position_embeddings=c.block_size, attn_implementation="sdpa",
    )  # fmt: skip
    adapters, plain = trained_weights(model), GPT(**SHAPE)
    base = {n: t for n, t in model.state_dict().items() if n not in adapters}
    plain.load_state_dict(base)
    theirs = filled(transformers.LlamaForCausalLM(config), as_llama(plain))
    lora = peft.LoraConfig(
        r=o.rank, lora_alpha=o.alpha, use_rslora=o.rslora, use_dora=o.name == "dora",
        target_modules=[f"{name}_proj" for name in o.target_names], lora_dropout=0.0,
    )  # fmt: skip
    theirs = peft.get_peft_model(theirs, lora)
    names = {theirs_name(name): name for name in adapters}
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if weight.requires_grad:
                weight.copy_(adapters[names.pop(name)])
    assert not names
    return theirs


def theirs_name(name: str) -> str:
    layer, _, own = name.rpartition(".")
    _, number, part = layer.split(".", 2)
    own = own.replace("magnitude", "lora_magnitude_vector")
    return f"base_model.model.model.layers.{number}.{LLAMA_NAMES[part]}.{own}.default.weight"


@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_gradients_equal_those_of_peft(method: str, peft: Any) -> None:
    model = tuned(METHODS[method]).train()
    theirs = with_peft(model, method, peft).train()
    inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]
    logits = theirs(inputs).logits
    torch.testing.assert_close(model(inputs), logits, atol=1e-5, rtol=1e-5)
    loss_of(model).backward()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = dict(theirs.named_parameters())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * (3 if method == "dora" else 2)
    for name, weight in trained.items():
        gradient = gradients[theirs_name(name)].grad
        torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", [SHAPE, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_merged_network_computes_what_the_adapted_one_does(
    method: str, shape: dict[str, Any]
) -> None:
    model = tuned(METHODS[method], **shape).eval()
    base = {n: t.clone() for n, t in model.state_dict().items() if n in GPT(**shape).state_dict()}
    before, adapters = model(TOKENS), trained_weights(model)
    plain = merge(model)
    assert not [layer for layer in plain.modules() if isinstance(layer, Adapted)]
    assert plain.state_dict().keys() == GPT(**shape).state_dict().keys()
    assert float((plain(TOKENS) - before).detach().abs().max()) <= 1e-5
    for name, weight in merged_weights(base, adapters, METHODS[method]).items():
        assert torch.equal(weight, plain.state_dict()[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_new_adapters_change_nothing_until_they_are_trained(method: str) -> None:
    plain = randomised(GPT(**SHAPE))
    before = plain(TOKENS)
    torch.testing.assert_close(adapt(plain, METHODS[method])(TOKENS), before, atol=1e-6, rtol=1e-5)


def test_adapters_are_drawn_by_the_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(trained_weights(adapt(randomised(GPT(**SHAPE)), METHODS["lora"])))
    name = "blocks.1.mlp.down.lora_A"
    assert torch.equal(drawn[0][name], drawn[1][name])
    assert not torch.equal(drawn[0][name], drawn[2][name])
    bound = GPT(**SHAPE).blocks[1].mlp.down.in_features ** -0.5
    assert 0.9 * bound < float(drawn[0][name].abs().max()) <= bound
    assert not drawn[0]["blocks.1.mlp.down.lora_B"].any()


def test_decoding_refuses_adapters_that_its_layout_would_leave_out() -> None:
    model = tuned(METHODS["lora"]).eval()
    with pytest.raises(ValueError, match="the network has adapters: call"):
        lay_out_for_decoding(model)
    before = model(TOKENS)
    lay_out_for_decoding(merge(model))
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_and_recomputation_repeat_the_same_dropout(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FinetuneOptions(**(vars(METHODS[method]) | {"dropout": 0.3}))
    gradients = []
    for every, from_numbers in ((0, 10**9), (1, 10**9), (0, 1)):
        monkeypatch.setattr("llm.functional.recompute.RECOMPUTED_FROM", from_numbers)
        model = tuned(options).train()
        model.checkpoint_every = every
        torch.manual_seed(11)
        loss_of(model).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def test_autocast_computes_in_bfloat16_and_trains_in_float32() -> None:
    for options in METHODS.values():
        model = tuned(options).train()
        exact = loss_of(model).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            loss = loss_of(model)
        loss.backward()
        assert abs(float(loss.detach()) - float(exact)) < 0.05
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(one is not None and one.dtype == torch.float32 for one in gradients)


def test_frozen_weights_get_no_gradient() -> None:
    model = tuned(METHODS["lora"]).train()
    loss_of(model).backward()
    for name, weight in model.named_parameters():
        is_adapter = name.endswith(("lora_A", "lora_B"))
        assert (weight.grad is not None) == weight.requires_grad == is_adapter, name


def test_muon_leaves_the_adapters_to_adamw() -> None:
    model = tuned(METHODS["dora"])
    matrices, embeddings, heads, others = split(model)
    assert not (matrices or embeddings or heads)
    assert len(others) == 2 * 7 * 3
    (group,) = muon(model, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.95]).param_groups
    assert (group["rule"], group["lr"], len(group["params"])) == ("adamw", 1.5e-3, len(others))


TRAINED = [
    ("head", [], True, {"embed.weight", "norm.weight"}),
    ("head", [], False, {"head.weight", "norm.weight"}),
    ("head", ["norm"], False, {"head.weight"}),
]


@pytest.mark.parametrize(("name", "freeze", "is_tied", "expected"), TRAINED)
def test_the_head_is_trained_with_the_last_norm(
    name: str, freeze: list[str], is_tied: bool, expected: set[str]
) -> None:
    model = GPT(**SHAPE, tie_embeddings=is_tied)
    assert trained_weights(adapt(model, FinetuneOptions(name, freeze=freeze))).keys() == expected


def test_frozen_parts_are_whole_names() -> None:
    shape = SHAPE | {"n_layer": 11}
    everything = GPT(**shape).state_dict().keys()
    options = FinetuneOptions("full", freeze=["blocks.1", "embed", "q"])
    trained = trained_weights(adapt(GPT(**shape), options)).keys()
    frozen = {n for n in everything if n.startswith(("blocks.1.", "embed.")) or ".q." in n}
    assert trained == everything - frozen
    assert "blocks.10.attention.k.weight" in trained


def test_a_frozen_matrix_gets_no_adapter() -> None:
    options = FinetuneOptions("lora", targets="q", freeze="blocks.0")
    adapters = trained_weights(adapt(GPT(**SHAPE), options)).keys()
    assert adapters == {f"blocks.1.attention.q.lora_{one}" for one in "AB"}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["v", "up"], r"blocks\.\d+\.(attention\.v|mlp\.up)"),
        (["mlp"], r"blocks\.\d+\.mlp\.(gate|up|down)"),
        (["blocks.1"], r"blocks\.1\.\w+\.(q|k|v|o|gate|up|down)"),
        ("blocks.?.attention", r"blocks\.\d\.attention\.(q|k|v|o)"),
        (["blocks.[02]", "blocks.1*.q"], r"blocks\.([02]\.\w+\.\w+|1\d?\.attention\.q)"),
    ],
)
def test_targets_are_parts_of_names_or_patterns(targets: list[str] | str, expected: str) -> None:
    model = adapt(GPT(**SHAPE | {"n_layer": 11}), FinetuneOptions("lora", targets=targets))
    adapted = {name for name, layer in model.named_modules() if isinstance(layer, Adapted)}
    matrices = {name for name, layer in model.named_modules() if isinstance(layer, Linear)}
    assert adapted == {name for name in matrices if re.fullmatch(expected, name)}
    assert len(adapted) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FinetuneOptions("lora", targets=["q", "x"]), "finetune.targets=x must be some of q, k"),
        (FinetuneOptions("lora", targets="norm"), "finetune.targets=norm must be some of q, k"),
        (FinetuneOptions("dora", targets="blocks.7"), "finetune.targets=blocks.7 must be some of"),
        (FinetuneOptions("lora", targets="gate"), "finetune.targets=gate: the network has no such"),
        (FinetuneOptions("full", freeze=["x"]), "finetune.freeze=x must be a part of a weight's"),
        (FinetuneOptions("head", freeze=["norm", "embed"]), "finetune.freeze: every weight is"),
    ],
)  # fmt: skip
def test_options_that_train_nothing_are_refused(options: FinetuneOptions, message: str) -> None:
    with pytest.raises(Refused, match=message):
        adapt(GPT(**GPT2), options)


@pytest.mark.parametrize(
    ("name", "key", "needs"),
    [
        ("none", "rank", "lora"), ("full", "dropout", "lora"), ("none", "freeze", "full"),
        ("lora", "bits", "qlora"), ("head", "bits", "qlora"),
    ],
)  # fmt: skip
def test_a_typed_key_without_effect_is_refused(name: str, key: str, needs: str) -> None:
    with pytest.raises(Refused, match=f"no effect with finetune={name}: add finetune={needs}"):
        FinetuneOptions(name).check_typed({f"finetune.{key}"})
    FinetuneOptions("full").check_typed({"finetune", "finetune.name", "finetune.freeze"})
    FinetuneOptions("lora").check_typed({"finetune.rank", "finetune.freeze"})
    FinetuneOptions("qlora").check_typed({"finetune.bits", "finetune.alpha"})
