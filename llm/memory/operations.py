"""The torch operations of the network: the memory that each allocates and saves."""

from collections.abc import Callable

from llm.functional.sizes import RECOMPUTED_FROM
from llm.memory.tape import Buffer, Parameter, Tape, Tensor
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions


class Operations:
    """Operations on ``batch`` sequences. Each declares the weights that it reads."""

    def __init__(
        self, tape: Tape, config: GPTConfig, batch: int, precision: str, device: str,
        finetune: FinetuneOptions, documents: bool = False,
    ) -> None:  # fmt: skip
        self.tape, self.config, self.batch, self.device = tape, config, batch, device
        self.finetune = finetune
        self.documents = documents  # whether a row holds several, each for itself
        self.tokens = batch * config.block_size
        self.width = 2 if precision == "bf16_weights" else 4  # bytes of a weight
        self.autocast = precision in ("bf16", "fp16")
        self.float16 = precision == "fp16"
        self.parameters: dict[str, Parameter] = {}  # the weights declared so far
        self.unmetered = tape.new(0)

    def is_trained(self, name: str) -> bool:
        """Whether a weight gets a gradient."""
        return self.tape.learning and self.finetune.trains(name, self.config.tie_embeddings)

    def weight(self, name: str, *shape: int, cast: bool = False) -> Tensor:
        """A weight; with ``cast``, autocast's copy in the type of matrix products."""
        one = self.parameters.setdefault(name, Parameter(name, shape))
        source = one if self.is_trained(name) else None
        weight = Tensor(self.unmetered, one.numbers, self.width, source)
        return self.for_products(weight, "16-bit copies of weights") if cast else weight

    def cast(self, x: Tensor, width: int, kind: str | None = None) -> Tensor:
        """``x`` in a type of ``width`` bytes."""
        return x if x.width == width else self.tape.apply(x.numbers, width, [x], kind=kind)

    def for_products(self, x: Tensor, kind: str | None = None) -> Tensor:
        """``x`` in the type of matrix products."""
        return self.cast(x, 2, kind) if self.autocast else x

    def pointwise(
        self, x: Tensor, *saved: Buffer, saves_output: bool = False, scratch: int = 0
    ) -> Tensor:
        """An elementwise function of ``x``."""
        return self.tape.apply(
            x.numbers, x.width, [x], saved, saves_output=saves_output, scratch=scratch
        )

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y in the type of ``x``; if ``y`` has another type, its gradient is a copy."""
        return self.tape.apply(x.numbers, x.width, [x, y], passes=2 if x.width == y.width else 1)

    def product(
        self, numbers: int, x: Tensor, y: Tensor, *added: Tensor, scratch: int = 0
    ) -> Tensor:
        """x times y plus ``added``: each factor is saved if the other one needs a gradient."""
        saved = [x.buffer] * y.needs_gradient + [y.buffer] * x.needs_gradient
        return self.tape.apply(numbers, x.width, [x, y, *added], saved, scratch=scratch)

    def matrix(self, x: Tensor, name: str, size: int, out: int, bias: str = "") -> Tensor:
        """(..., size) -> (..., out): x @ weight.T + bias, by their names."""
        weight = self.weight(name, out, size, cast=True)
        added = [self.weight(bias, out, cast=True)] if bias else []
        return self.product(x.numbers // size * out, x, weight, *added)

    def linear(self, x: Tensor, name: str, size: int, out: int) -> Tensor:
        """A linear layer, with an adapter if it is a target."""
        x, is_qkv = self.for_products(x), name.endswith((".q", ".k", ".v"))
        has_bias = self.config.bias or (self.config.qkv_bias and is_qkv)
        bias = f"{name}.bias" if has_bias else ""
        if self.finetune.adapts(name):
            return self.adapted(x, name, size, out, bias)
        return self.matrix(x, f"{name}.weight", size, out, bias)

    def adapted(self, x: Tensor, name: str, size: int, out: int, bias: str) -> Tensor:
        """A frozen matrix with A and B, and with DoRA's magnitude: llm/model/lora.py."""
        finetune, is_dora = self.finetune, self.finetune.name == "dora"
        dropped = self.dropped(x, finetune.dropout)
        if dropped is x:  # this gradient is added to that of the product with W, in place
            dropped = Tensor(x.buffer, x.numbers, x.width)
        low = self.matrix(dropped, f"{name}.lora_A", size, finetune.rank)
        del dropped
        low = self.pointwise(low)  # times alpha / rank
        y = self.frozen_product(x, low, name, size, out, "" if is_dora else bias)
        del low
        if not is_dora:
            return y
        # The lengths of its rows: the matrix in float32, and four results of (out, rank)
        self.tape.temporary(4 * size * out * (self.width == 2) + 4 * 4 * out * finetune.rank)
        magnitude = self.cast(self.weight(f"{name}.magnitude", out), y.width)
        y = self.product(y.numbers, y, magnitude, scratch=y.size)
        return self.add(y, self.cast(self.weight(bias, out), y.width)) if bias else y

    def frozen_product(
        self, x: Tensor, low: Tensor, name: str, size: int, out: int, bias: str
    ) -> Tensor:
        """x @ W.T + low @ B.T + bias: ``adapted`` in llm/functional/low_rank.py.

        In both passes W is made dense if it is quantised, and converted to the type of ``x``.
        """
        weight = self.weight(f"{name}.weight", out, size)
        b = self.weight(f"{name}.lora_B", out, self.finetune.rank)
        if bias:
            self.weight(bias, out)
        bits, cast = self.finetune.stored_bits, x.width * weight.numbers
        dense = 4 * weight.numbers if bits else 0
        indices = 2 * weight.numbers if bits == 4 else 0
        narrow = cast if x.width < (4 if bits else weight.width) else 0
        x_size, low_size, needed = x.size, low.size, x.needs_gradient
        if self.tape.learning:
            self.tape.kept.append(low.buffer)

        def product_of(other: int) -> Buffer:
            whole = self.tape.temporary(dense)
            self.tape.temporary(indices)
            converted = self.tape.temporary(narrow)
            if converted.size:
                del whole
            return self.tape.temporary(other)

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            for_x = product_of(x_size) if needed else None
            return [for_x, self.tape.temporary(low_size), self.tape.temporary(b.size)]

        numbers = x.numbers // size * out
        product_of(numbers * x.width)
        return self.tape.apply(numbers, x.width, [x, low, b], backward=backward)

    def embedding(self, name: str, rows: int, tokens: int) -> Tensor:
        """A row of the table (rows, n_embed) for each of ``tokens``."""
        size = self.config.n_embed
        return self.tape.apply(tokens * size, self.width, [self.weight(name, rows, size)])

    def dropout(self, x: Tensor) -> Tensor:
        """Dropout of the network."""
        return self.dropped(x, self.config.dropout)

    def dropped(self, x: Tensor, rate: float) -> Tensor:
        """Dropout saves its mask: in the type of ``x`` on a CPU, in bytes on a GPU."""
        if not rate or not self.tape.learning:
            return x
        return self.pointwise(x, self.tape.new(x.size if self.device == "cpu" else x.numbers))

    def norm(self, x: Tensor, name: str, size: int) -> Tensor:
        """RMSNorm or LayerNorm over rows of ``size``; saves one or two statistics per row."""
        inputs = [x, self.weight(f"{name}.weight", size)]
        rows = 4 * x.numbers // size
        if self.config.norm == "rmsnorm":
            saved = [x.buffer, self.tape.new(rows)]
            return self.tape.apply(x.numbers, x.width, inputs, saved, scratch=4 * x.numbers)
        if self.config.bias:
            inputs.append(self.weight(f"{name}.bias", size))
        return self.tape.apply(x.numbers, x.width, inputs, [x.buffer, self.tape.new(2 * rows)])

    def recomputed(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Like :func:`llm.functional.recompute.recomputed`."""
        if inputs[0].numbers >= RECOMPUTED_FROM:
            return self.tape.checkpoint(function, *inputs)
        return function(*inputs)
