"""What each operation of the network allocates, keeps and takes on its way back."""

import math
from collections.abc import Callable

from llm.checkpoint.shapes import weight_shapes
from llm.functional.sizes import RECOMPUTED_FROM
from llm.memory.lora import LoRA
from llm.memory.tape import Buffer, Leaf, Tape, Tensor
from llm.model.config import GPTConfig


class Operations:
    """Those on ``batch`` sequences, with the weights of a network, on a tape."""

    def __init__(
        self, tape: Tape, config: GPTConfig, batch: int, precision: str, device: str,
        lora: LoRA | None = None,
    ) -> None:  # fmt: skip
        self.tape, self.config, self.batch, self.device = tape, config, batch, device
        self.tokens = batch * config.block_size
        self.width = 2 if precision == "bf16_weights" else 4  # bytes of a weight
        self.half = precision in ("bf16", "fp16")  # autocast
        self.float16 = precision == "fp16"
        self.lora = lora
        self.leaves: dict[str, Leaf] = {}
        added = lora.shapes(config) if lora else {}
        for name, shape in (weight_shapes(config) | added).items():
            kind = "LoRA weights" if name in added else "weights"
            buffer = tape.new(math.prod(shape) * self.width, kind)
            self.leaves[name] = Leaf(buffer, name, shape, self.width)
        assert config.head_size
        angles = 2 * config.block_size * config.head_size  # of rotary positions, used or not
        self.angles = tape.new(4 * angles, "weights")
        names = (added or self.leaves) if tape.learning else ()
        self.trained = {name: self.leaves[name] for name in names}

    def weight(self, name: str, cast: bool = False) -> Tensor:
        """A parameter; with ``cast`` in the type of the products, as autocast copies it."""
        leaf = self.leaves[name]
        plain = Tensor(leaf.buffer, leaf.numbers, leaf.width, self.trained.get(name))
        return self.cast(plain, 2, "16-bit copies of weights") if cast and self.half else plain

    def cast(self, x: Tensor, width: int, kind: str | None = None) -> Tensor:
        """``x`` in another type."""
        if x.width == width:
            return x
        before = x.numbers * x.width

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            return [self.tape.temporary(before)]

        return self.tape.apply(x.numbers, width, [x], [], backward, kind=kind)

    def for_products(self, x: Tensor) -> Tensor:
        """``x`` in the type of matrix products."""
        return self.cast(x, 2) if self.half else x

    def simple(self, x: Tensor, saved: list[Buffer], scratch: float = 0) -> Tensor:
        """An operation on each number; going back takes ``scratch`` times its size besides."""
        tape, size = self.tape, x.numbers * x.width

        def backward(gradient: Buffer, kept: list[Buffer]) -> list[Buffer | None]:
            held = tape.temporary(int(scratch * size)) if scratch else None
            result = tape.temporary(size)
            del held
            return [result]

        return tape.apply(x.numbers, x.width, [x], saved, backward)

    def with_result(self, x: Tensor) -> Tensor:
        """An operation on each number whose way back needs its result, as that of tanh."""
        out, size = self.tape.new(x.numbers * x.width), x.numbers * x.width

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            return [self.tape.temporary(size)]

        return self.tape.apply(x.numbers, x.width, [x], [out], backward, out=out)

    def product(self, x: Tensor, y: Tensor, numbers: int) -> Tensor:
        """A product of two batches of matrices."""
        gradients = self.gradients([x, y])

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            for_y = gradients(1)  # the second one's first
            return [gradients(0), for_y]

        return self.tape.apply(numbers, x.width, [x, y], self.factors(x, y), backward)

    def factors(self, x: Tensor, y: Tensor) -> list[Buffer]:
        """What a product keeps: of each factor, if a gradient of the other is wanted."""
        return [x.buffer] * y.learns + [y.buffer] * x.learns

    def gradients(self, inputs: list[Tensor]) -> Callable[[int], Buffer | None]:
        """Makes the gradient of one of the ``inputs``, whose memory it does not hold, if wanted."""
        sizes = [t.numbers * t.width if t.learns else None for t in inputs]

        def gradient(number: int) -> Buffer | None:
            size = sizes[number]
            return None if size is None else self.tape.temporary(size)

        return gradient

    def linear(self, x: Tensor, name: str, out: int) -> Tensor:
        """x (tokens, C) @ weight.T + bias, and what A and B add to it."""
        x = self.for_products(x)
        rows = x.numbers // self.columns(name)
        y = self.matrix(x, name, rows * out)
        if not self.lora or f"{name}.lora_A.weight" not in self.leaves:
            return y
        low = self.matrix(x, f"{name}.lora_A", rows * self.lora.rank)
        low = self.simple(low, [])  # times a number, which is a tensor of its own
        return self.add(y, self.matrix(low, f"{name}.lora_B", rows * out))

    def matrix(self, x: Tensor, name: str, numbers: int) -> Tensor:
        """One matrix with its bias; ``numbers`` come out."""
        weight = self.weight(f"{name}.weight", cast=True)
        inputs = [x, weight]
        bias = f"{name}.bias"
        if bias in self.leaves:
            inputs.append(self.weight(bias, cast=True))
        gradients, count = self.gradients(inputs), len(inputs)

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            for_weight = gradients(1)
            return [gradients(0), for_weight, *map(gradients, range(2, count))]

        return self.tape.apply(numbers, x.width, inputs, self.factors(x, weight), backward)

    def columns(self, name: str) -> int:
        """Numbers in a row of what a matrix is applied to."""
        config = self.config
        assert config.n_head and config.head_size and config.intermediate_size
        if name.endswith("mlp.down"):
            return config.intermediate_size
        return config.n_head * config.head_size if name.endswith(".o") else config.n_embed

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y; the gradient of the sum is that of both."""
        same, size = y.width == x.width, y.numbers * y.width

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            return [gradient, gradient if same else self.tape.temporary(size)]

        return self.tape.apply(x.numbers, x.width, [x, y], [], backward)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout, whose mask is kept."""
        if not self.config.dropout or not self.tape.learning:
            return x
        # A CPU keeps factors, a GPU bits.
        mask = self.tape.new(x.numbers * (x.width if self.device == "cpu" else 1))
        return self.simple(x, [mask])

    def norm(self, x: Tensor, name: str, size: int) -> Tensor:
        """RMSNorm or LayerNorm over rows of ``size``, in the type of the products."""

        def function(x: Tensor) -> Tensor:
            normed = self.bare_norm(x, name, size)
            return normed if name == "norm" else self.for_products(normed)

        if x.numbers >= RECOMPUTED_FROM:
            return self.tape.checkpoint(function, x)
        return function(x)

    def bare_norm(self, x: Tensor, name: str, size: int) -> Tensor:
        """The norm itself."""
        tape, bytes_of_x = self.tape, x.numbers * x.width
        weight = self.weight(f"{name}.weight")
        inputs = [x, weight]
        layernorm = self.config.norm == "layernorm"
        if layernorm and self.config.bias:
            inputs.append(self.weight(f"{name}.bias"))
        scale = tape.new(x.numbers // size * 4 * (2 if layernorm else 1))

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            for_x = tape.temporary(bytes_of_x)
            if not layernorm:
                tape.temporary(x_wide)  # a product of the size of x, before it is summed up
            return [for_x, *map(tape.temporary, small)]

        x_wide, small = x.numbers * 4, [t.numbers * t.width for t in inputs[1:]]
        return tape.apply(x.numbers, x.width, inputs, [x.buffer, weight.buffer, scale], backward)
