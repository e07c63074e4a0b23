"""The network of :mod:`llm.model` once more, as what its operations allocate and keep."""

from llm.functional.sizes import CHUNK, LARGE_VOCABULARY, RECOMPUTED_FROM, ROWS
from llm.memory.operations import Operations
from llm.memory.tape import Buffer, Tensor
from llm.model.config import CHECKPOINTED


class Network(Operations):
    """A forward pass."""

    # The parts of a block

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary positions: nothing is kept."""
        tape, size = self.tape, x.numbers * x.width
        if x.width == 4:
            return self.simple(x, [])

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            held = [tape.temporary(2 * size), tape.temporary(2 * size), tape.temporary(2 * size)]
            del held
            return [tape.temporary(size)]

        held = [tape.temporary(size), *(tape.temporary(2 * size) for _ in range(3))]
        del held
        return tape.apply(x.numbers, x.width, [x], [], backward)

    def attention(self, x: Tensor, name: str) -> Tensor:
        """Causal self-attention."""
        config = self.config
        assert config.n_head and config.n_kv_head and config.head_size
        inner, shared = config.n_head * config.head_size, config.n_kv_head * config.head_size
        q = self.linear(x, f"{name}.q", inner)
        k = self.linear(x, f"{name}.k", shared)
        v = self.linear(x, f"{name}.v", shared)
        if config.qk_norm:
            wide = self.width
            q = self.bare_norm(self.cast(q, wide), f"{name}.q_norm", config.head_size)
            k = self.bare_norm(self.cast(k, wide), f"{name}.k_norm", config.head_size)
        if config.position == "rotary":
            q, k = self.rotate(q), self.rotate(k)
        q, k = self.cast(q, v.width), self.cast(k, v.width)
        return self.linear(self.attend(q, k, v), f"{name}.o", config.n_embed)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scaled dot products: flash keeps its result and a number for each query and head."""
        tape, config = self.tape, self.config
        assert config.n_head and config.n_kv_head
        dropped = config.dropout > 0 and tape.learning
        if self.device == "cpu":
            by_all = dropped
        else:  # torch's second best, for float32, knows no shared heads
            by_all = q.width == 4 and config.n_kv_head != config.n_head
        if by_all:
            return self.attend_by_all(q, k, v, dropped)
        sizes = [t.numbers * t.width for t in (q, k, v)]
        per_head = tape.new(self.tokens * config.n_head * 4)
        out = tape.new(sizes[0])

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            return [tape.temporary(size) for size in sizes]

        kept = [q.buffer, k.buffer, v.buffer, out, per_head]
        return tape.apply(q.numbers, q.width, [q, k, v], kept, backward, out=out)

    def attend_by_all(self, q: Tensor, k: Tensor, v: Tensor, dropped: bool) -> Tensor:
        """The same with the weight of every pair of positions, as torch does where flash cannot."""
        config, width, numbers = self.config, q.width, q.numbers
        assert config.n_head
        pairs = self.tokens * config.n_head * config.block_size
        q = self.cast(q, 4)
        k, v = (self.cast(self.repeated(x, numbers), 4) for x in (k, v))
        scaled = self.simple(self.simple(q, []), []), self.simple(self.simple(k, []), [])
        scores = self.product(*scaled, pairs)
        del scaled
        weights = self.with_result(self.simple(scores, []))
        del scores
        if dropped:
            weights = self.simple(weights, [self.tape.new(pairs * 4)])
        also = self.tape.new(pairs * 2) if width == 2 else None  # returned as well, unused
        out = self.cast(self.product(weights, self.simple(v, []), numbers), width)
        del also
        return self.simple(out, [])  # one piece again

    def repeated(self, x: Tensor, numbers: int) -> Tensor:
        """Keys or values for each query head."""
        if x.numbers == numbers:
            return x
        before = x.numbers * x.width

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            return [self.tape.temporary(before)]

        return self.tape.apply(numbers, x.width, [x], [], backward)

    def mlp(self, x: Tensor, name: str) -> Tensor:
        """The MLP; its steps between are computed again where they are large."""
        hidden = self.config.intermediate_size
        assert hidden
        swiglu = self.config.mlp == "swiglu"
        gate = [self.linear(x, f"{name}.gate", hidden)] if swiglu else []
        up = self.linear(x, f"{name}.up", hidden)

        def function(*parts: Tensor) -> Tensor:
            inner = self.gated(*parts) if swiglu else self.activated(parts[0])
            del parts
            return self.linear(inner, f"{name}.down", self.config.n_embed)

        if up.numbers >= RECOMPUTED_FROM:
            return self.tape.checkpoint(function, *gate, up)
        return function(*gate, up)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up."""
        opened = self.simple(gate, [gate.buffer])
        gradients = self.gradients([opened, up])

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            return [gradients(0), gradients(1)]

        kept = self.factors(opened, up)
        return self.tape.apply(up.numbers, up.width, [opened, up], kept, backward)

    def activated(self, up: Tensor) -> Tensor:
        """gelu(up), or relu(up) ** 2."""
        if self.config.mlp != "relu2":
            return self.simple(up, [up.buffer])
        relu = self.with_result(up)
        return self.simple(relu, [relu.buffer], scratch=2)

    def block(self, x: Tensor, start: Tensor, i: int) -> Tensor:
        """One layer."""
        config, name = self.config, f"blocks.{i}"
        if config.residual_scalars:
            x = self.add(self.scaled(x, f"{name}.mix"), self.scaled(start, f"{name}.mix"))
        normed = self.norm(x, f"{name}.attention_norm", config.n_embed)
        x = self.add(x, self.drop(self.attention(normed, f"{name}.attention")))
        del normed
        return self.add(
            x, self.drop(self.mlp(self.norm(x, f"{name}.mlp_norm", config.n_embed), f"{name}.mlp"))
        )

    def scaled(self, x: Tensor, name: str) -> Tensor:
        """x times a learned number."""
        tape, mix, size = self.tape, self.weight(name), x.numbers * x.width
        gradients, learns = self.gradients([x, mix]), mix.learns

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            for_x = gradients(0)
            if learns:
                tape.temporary(size)  # the product whose sum is the number's gradient
            return [for_x, gradients(1)]

        return tape.apply(x.numbers, x.width, [x, mix], self.factors(x, mix), backward)

    # The whole

    def embedding(self, name: str, size: int, rows: int | None = None) -> Tensor:
        """Rows of a table, one for each token."""
        table = self.weight(name)
        numbers = (self.tokens if rows is None else rows) * size

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            return [self.tape.temporary(table.numbers * table.width)]

        return self.tape.apply(numbers, self.width, [table], [], backward)

    def smeared(self, x: Tensor) -> Tensor:
        """Each position plus its predecessors."""
        tape, K, C = self.tape, self.config.smear, self.config.n_embed
        size, weights = x.numbers * x.width, self.weight("smear")
        line_numbers = x.numbers + self.batch * K * C

        def unpad(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            return [tape.temporary(size)]

        line = tape.apply(line_numbers, x.width, [x], [], unpad)

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            tape.temporary(size)
            product = tape.temporary(size)
            for_line = tape.temporary(line_numbers * x_width)
            del product
            return [gradient, tape.temporary(weights.numbers * weights.width), for_line]

        x_width = x.width
        for _ in range(K):
            x = tape.apply(
                x.numbers, x.width, [x, weights, line], [weights.buffer, line.buffer], backward
            )
        return x

    def forward(self, checkpointing: str = "none", with_loss: bool = True) -> Tensor:
        """The hidden states of all tokens and, unless only they are wanted, their loss."""
        every = CHECKPOINTED[checkpointing]
        config, tape = self.config, self.tape
        tape.meter.phase = "embedding"
        x = self.embedding("embed.weight", config.n_embed)
        if config.smear:
            x = self.smeared(x)
        if config.position == "learned":
            x = self.add(x, self.embedding("position.weight", config.n_embed, config.block_size))
        start = x = self.drop(x)
        for i in range(config.n_layer):
            tape.meter.phase = f"block {i}"
            if every and i % every == 0:
                x = tape.checkpoint(lambda x, start, i=i: self.block(x, start, i), x, start)
            else:
                x = self.block(x, start, i)
        tape.meter.phase = "loss"
        x = self.norm(x, "norm", config.n_embed)
        del start
        if not with_loss:
            return x
        tape.kind = "logits and loss"
        loss = self.loss(x)
        tape.kind = "activations"
        return loss

    def loss(self, x: Tensor) -> Tensor:
        """Cross-entropy, from all logits at once or in chunks."""
        how, V = self.config.loss, self.config.vocab_size
        assert V
        if how == "full" or (how == "auto" and V < LARGE_VOCABULARY):
            return self.full_loss(x, V)
        return self.chunked_loss(x, V)

    def full_loss(self, x: Tensor, V: int) -> Tensor:
        """All logits, their logarithmic softmax, and the gradients of both."""
        tape = self.tape
        logits = self.cast(self.linear(x, self.head, V), 4)
        del x
        size = logits.numbers * 4
        out = tape.new(size)

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            picked = tape.temporary(size)
            result = tape.temporary(size)
            del picked
            return [result]

        return tape.apply(1, 4, [logits], [out], backward)

    def chunked_loss(self, x: Tensor, V: int) -> Tensor:
        """The gradients with the loss, chunk by chunk."""
        tape, width = self.tape, 2 if self.half or self.width == 2 else 4
        rows, head = min(CHUNK, self.tokens), self.weight(f"{self.head}.weight")
        C, cpu = head.numbers // V, self.device == "cpu"
        weight = tape.new(head.numbers * 2) if width != self.width else None
        kept = [tape.new(x.numbers * x.width)] if x.learns else []
        parts = []  # of the head's gradient, in float32; in one piece unless it has 16 bits
        if head.learns:
            each = ROWS if self.width == 2 else V
            parts = [tape.new(min(each, V - start) * C * 4) for start in range(0, V, each)]
        chunk = [tape.new(rows * V * width), tape.new(rows * V * 4)]
        wide = tape.new(rows * V * 4) if width == 2 else None
        del wide
        # On a CPU the head's gradient is a product of float32, and so is that of x in float16.
        rounded = x.learns and not self.float16 if cpu else x.learns or head.learns
        narrow = tape.new(rows * V * 2) if width == 2 and rounded else None
        product = tape.new(min(ROWS, V) * C * 4) if head.learns and width == 2 and not cpu else None
        del narrow, product
        del chunk, weight
        if self.width == 2 and parts:
            converted = []
            while parts:
                converted.append(tape.new(parts[0].size // 2))
                parts.pop(0)
            parts = [tape.new(head.numbers * 2)]
            del converted
        kept += parts
        del parts

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            return [saved.pop(0) if learns else None for learns in wanted]

        wanted = [x.learns, head.learns]
        return tape.apply(1, 4, [x, head], kept, backward)

    @property
    def head(self) -> str:
        """The name of the matrix that makes logits."""
        return "embed" if self.config.tie_embeddings else "head"
