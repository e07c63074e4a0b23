"""The shape of a network as plain numbers, without torch, so that a run can be planned quickly."""

from dataclasses import dataclass, replace

from llm.errors import require

CHOICES = {
    "norm": ("rmsnorm", "layernorm"),
    "mlp": ("swiglu", "relu2", "gelu", "gelu_exact"),
    "position": ("rotary", "learned"),
    "loss": ("auto", "full", "chunked"),
}
# trainer.activation_checkpointing -> GPT.checkpoint_every
CHECKPOINTED = {"none": 0, "full": 1, "every_2": 2}
# Bounds that no model for one card comes near: a hostile or mistyped value must not allocate.
LARGEST = {
    "n_layer": 512, "n_embed": 16_384, "n_head": 16_384, "head_size": 16_384, "n_kv_head": 16_384,
    "intermediate_size": 65_536, "block_size": 1_048_576, "vocab_size": 1_048_576,
}  # fmt: skip


@dataclass
class GPTConfig:
    """What :class:`llm.model.gpt.GPT` is built from; :meth:`resolve` fills in each ``None``."""

    n_layer: int = 4
    n_embed: int = 128
    n_head: int | None = None  # None: n_embed / head_size, so that n_embed can be swept
    head_size: int | None = 32  # None: n_embed / n_head
    n_kv_head: int | None = None  # None: n_head; fewer is grouped-query attention
    intermediate_size: int | None = None  # None: as :meth:`default_intermediate_size` says
    block_size: int = 128
    vocab_size: int | None = None  # None: the data's
    dropout: float = 0.0
    bias: bool = False
    norm: str = "rmsnorm"
    mlp: str = "swiglu"
    position: str = "rotary"
    qk_norm: bool = False
    tie_embeddings: bool = True
    loss: str = "auto"  # the same value, with or without the logits of all tokens at once
    residual_scalars: bool = False
    smear: int = 0  # previous tokens whose embeddings are mixed into each position's

    def resolve(self, vocab_size: int | None = None) -> "GPTConfig":
        """The same shape with every ``None`` replaced by its number.

        ``vocab_size`` (tokens) stands in for a missing ``vocab_size`` and may itself be unknown
        yet. Raises :class:`llm.errors.Refused` where the numbers do not fit together.
        """
        self.check()
        n_head, head_size = self.n_head, self.head_size
        require(
            n_head or head_size, "model.n_head and model.head_size are both null: give one of them"
        )
        n_head = n_head or self._share("head_size", "n_head")
        head_size = head_size or self._share("n_head", "head_size")
        full = replace(
            self, n_head=n_head, head_size=head_size, n_kv_head=self.n_kv_head or n_head,
            intermediate_size=self.intermediate_size or self.default_intermediate_size(),
            vocab_size=self.vocab_size or vocab_size,
        )  # fmt: skip
        full.check()
        return full

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first key whose value cannot be built."""
        for key, most in LARGEST.items():
            value = getattr(self, key)
            require(value is None or value >= 1, f"model.{key}={value} must be at least 1")
            require(value is None or value <= most, f"model.{key}={value} is more than {most}")
        for key, known in CHOICES.items():
            value, names = getattr(self, key), ", ".join(known)
            require(value in known, f"model.{key}={value} is unknown: take one of {names}")
        smear, block_size = self.smear, self.block_size
        require(
            0 <= smear < min(max(2, block_size), 65),
            f"model.smear={smear} must be at least 0, less than block_size={block_size} and 65",
        )
        require(0 <= self.dropout < 1, f"model.dropout={self.dropout} must be in [0, 1)")
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

    def default_intermediate_size(self) -> int:
        """Width of the MLP in channels: 4 n_embed, or two thirds of it with a gate.

        So three matrices cost what two do (Shazeer 2020, arXiv:2002.05202), but for rounding up to
        a multiple of 64.
        """
        return -(-8 * self.n_embed // 3 // 64) * 64 if self.mlp == "swiglu" else 4 * self.n_embed

    def _share(self, key: str, other: str) -> int:
        """``n_embed`` divided by what ``key`` says."""
        n_embed, divisor = self.n_embed, getattr(self, key)
        # Rotary positions turn pairs of channels, so that a head has an even number of them.
        step = 2 * divisor if key == "n_head" and self.position == "rotary" else divisor
        low = n_embed // step * step
        nearby = f"{low} or {low + step}" if low else str(step)
        require(
            n_embed % divisor == 0,
            f"model.n_embed={n_embed} is not divisible by model.{key}={divisor}: "
            f"take {nearby}, or set model.{other}",
        )
        return n_embed // int(divisor)
