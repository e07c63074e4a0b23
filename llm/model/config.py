"""The shape of a network as plain numbers. Without torch, so that planning a run starts quickly."""

from dataclasses import dataclass, replace

from llm.errors import require
from llm.options import option, validate

NORMS = ("rmsnorm", "layernorm")
MLPS = ("swiglu", "relu2", "gelu", "gelu_exact")
POSITIONS = ("rotary", "learned")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
LOSSES = ("auto", "full", "chunked")
# trainer.activation_checkpointing -> GPT.checkpoint_every
CHECKPOINTED = {"none": 0, "full": 1, "every_2": 2}


@dataclass
class GPTConfig:
    """The options of :class:`llm.model.gpt.GPT`; :meth:`resolve` fills in each ``None``.

    The upper bounds are beyond any model for one GPU, so that a mistyped or hostile value is
    refused before anything is allocated.
    """

    n_layer: int = option(4, at_least=1, at_most=512)
    n_embed: int = option(128, at_least=1, at_most=16_384)
    n_head: int | None = option(None, at_least=1, at_most=16_384)  # None: n_embed / head_size
    head_size: int | None = option(32, at_least=1, at_most=16_384)  # None: n_embed / n_head
    n_kv_head: int | None = option(None, at_least=1, at_most=16_384)  # None: n_head
    # None: :meth:`default_intermediate_size`
    intermediate_size: int | None = option(None, at_least=1, at_most=65_536)
    block_size: int = option(128, at_least=1, at_most=2**20)
    vocab_size: int | None = option(None, at_least=1, at_most=2**20)  # None: the data's
    dropout: float = option(0.0, at_least=0, less_than=1)
    bias: bool = False
    norm: str = option("rmsnorm", one_of=NORMS)
    mlp: str = option("swiglu", one_of=MLPS)
    position: str = option("rotary", one_of=POSITIONS)
    qk_norm: bool = False
    tie_embeddings: bool = True
    loss: str = option("auto", one_of=LOSSES)  # the same value, in more or less memory
    residual_scalars: bool = False
    smear: int = option(0, at_least=0, at_most=64)  # previous embeddings mixed into each position
    # For other people's weights (llm/interchange/). Presets keep the defaults.
    qkv_bias: bool = False  # biases of queries, keys and values only (Qwen2)
    norm_eps: float | None = option(None, more_than=0, less_than=1)  # None: as Llama or GPT-2
    rope_base: float = option(10_000.0, more_than=1)
    rope_scaling: str = option("none", one_of=ROPE_SCALINGS)
    rope_factor: float = option(1.0, at_least=1)  # how much longer than rope_original_size
    rope_original_size: int | None = option(None, at_least=1, at_most=2**20)
    # llama3: low_freq_factor and high_freq_factor; yarn: beta_slow and beta_fast
    rope_low: float = option(1.0, at_least=1e-6, at_most=1e6)
    rope_high: float = option(4.0, at_least=1e-6, at_most=1e6)

    def resolve(self, vocab_size: int | None = None) -> "GPTConfig":
        """The same shape with every ``None`` replaced by its number.

        ``vocab_size`` (of the data, if known) replaces a missing ``vocab_size``. Raises
        :class:`llm.errors.Refused` if the numbers do not fit together.
        """
        validate(self, "model.")
        require(
            self.n_head or self.head_size,
            "model.n_head and model.head_size are both null: give one of them",
        )
        n_head = self.n_head or self._share("head_size", "n_head")
        head_size = self.head_size or self._share("n_head", "head_size")
        full = replace(
            self, n_head=n_head, head_size=head_size, n_kv_head=self.n_kv_head or n_head,
            intermediate_size=self.intermediate_size or self.default_intermediate_size(),
            vocab_size=self.vocab_size or vocab_size,
        )  # fmt: skip
        validate(full, "model.")
        return full

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` for values that do not go together."""
        if self.n_head and self.n_kv_head:
            require(
                self.n_head % self.n_kv_head == 0,
                f"model.n_kv_head={self.n_kv_head} does not divide the {self.n_head} query heads",
            )
        if self.position == "rotary" and self.head_size:
            require(
                self.head_size % 2 == 0,
                f"model.head_size={self.head_size} is odd, and rotary positions turn pairs: "
                "take an even one",
            )
        low, high = self.rope_low, self.rope_high
        wrong = self.rope_scaling in ("llama3", "yarn") and low >= high
        require(not wrong, f"model.rope_low={low:g} must be less than model.rope_high={high:g}")

    def default_intermediate_size(self) -> int:
        """Width of the MLP: 4 n_embed, or with a gate two thirds of it, rounded up to a multiple of
        64, so that three matrices cost as much as two (Shazeer 2020, arXiv:2002.05202).
        """
        return -(-8 * self.n_embed // 3 // 64) * 64 if self.mlp == "swiglu" else 4 * self.n_embed

    def _share(self, key: str, other: str) -> int:
        """``n_embed`` divided by the value of ``key``."""
        n_embed, divisor = self.n_embed, getattr(self, key)
        # Rotary positions rotate pairs of channels, so a head needs an even number of them.
        step = 2 * divisor if key == "n_head" and self.position == "rotary" else divisor
        low = n_embed // step * step
        nearby = f"{low} or {low + step}" if low else str(step)
        require(
            n_embed % divisor == 0,
            f"model.n_embed={n_embed} is not divisible by model.{key}={divisor}: "
            f"take {nearby}, or set model.{other}",
        )
        return n_embed // int(divisor)
