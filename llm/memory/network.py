"""The memory of the forward pass of :mod:`llm.model`; a new model option has to be added here.

Each method mirrors the layer of the same name, operation by operation.
"""

from llm.functional.sizes import CHUNK, LARGE_VOCABULARY, ROWS
from llm.memory.operations import Operations
from llm.memory.tape import Buffer, Tensor
from llm.model.config import CHECKPOINTED


class Network(Operations):
    """Declares the weights, and allocates the memory of a forward pass on a tape."""

    def forward(self, checkpointing: str = "none", with_loss: bool = True) -> Tensor:
        """The loss of all tokens, or their hidden states (``with_loss=False``)."""
        config, tape, every = self.config, self.tape, CHECKPOINTED[checkpointing]
        assert config.vocab_size
        tape.enter("embedding")
        x = self.embedding("embed.weight", config.vocab_size, self.tokens)
        self.mask = self.mask_between() if self.documents else None
        if config.smear:
            x = self.smeared(x)
        if config.position == "learned":
            size = config.block_size
            x = self.add(x, self.embedding("position.weight", size, size))
        start = x = self.dropout(x)
        for i in range(config.n_layer):
            tape.enter(f"block {i}")
            if every and i % every == 0:
                x = tape.checkpoint(lambda x, start, i=i: self.block(x, start, i), x, start)
            else:
                x = self.block(x, start, i)
        tape.enter("loss")
        x = self.norm(x, "norm", config.n_embed)
        del start
        if not with_loss:
            return x
        if self.documents:  # only answers count: their rows are copied, at most all of them
            x = self.pointwise(x)
        return self.loss(x, config.vocab_size)

    def smeared(self, x: Tensor) -> Tensor:
        """Each position plus its weighted predecessors."""
        K, C = self.config.smear, self.config.n_embed
        weights = self.weight("smear", K, C)
        line = self.tape.apply(x.numbers + self.batch * K * C, x.width, [x])
        for _ in range(K):
            # Predecessors in another document become zeros, in a copy.
            earlier = self.pointwise(line) if self.documents else line
            saved = [earlier.buffer] * weights.needs_gradient
            x = self.tape.apply(
                x.numbers, x.width, [x, weights, earlier], saved, passes=1, scratch=x.size
            )
        return x

    def mask_between(self) -> Buffer:
        """The mask of packed documents, a number in the type of matrix products for each pair."""
        pairs = self.tokens * self.config.block_size
        booleans = [self.tape.temporary(pairs), self.tape.temporary(pairs)]
        width = 2 if self.autocast else self.width
        mask = self.tape.new(pairs * width)
        del booleans
        return mask

    def block(self, x: Tensor, start: Tensor, i: int) -> Tensor:
        """One layer."""
        config, name = self.config, f"blocks.{i}"
        if config.residual_scalars:
            mix = self.weight(f"{name}.mix", 2)
            x = self.add(self.scaled(x, mix), self.scaled(start, mix))
        normed = self.prepared(x, f"{name}.attention_norm")
        x = self.add(x, self.dropout(self.attention(normed, f"{name}.attention")))
        del normed
        normed = self.prepared(x, f"{name}.mlp_norm")
        return self.add(x, self.dropout(self.mlp(normed, f"{name}.mlp")))

    def scaled(self, x: Tensor, mix: Tensor) -> Tensor:
        """x times a learned scalar; the scalar's gradient is summed from a product of x's size."""
        return self.product(x.numbers, x, mix, scratch=x.size * mix.needs_gradient)

    def prepared(self, x: Tensor, name: str) -> Tensor:
        """The norm before attention or MLP, in the type of matrix products."""
        size = self.config.n_embed
        return self.recomputed(lambda x: self.for_products(self.norm(x, name, size)), x)

    def attention(self, x: Tensor, name: str) -> Tensor:
        """Causal self-attention."""
        config, C = self.config, self.config.n_embed
        assert config.n_head and config.n_kv_head and config.head_size
        inner, shared = config.n_head * config.head_size, config.n_kv_head * config.head_size
        q = self.linear(x, f"{name}.q", C, inner)
        k = self.linear(x, f"{name}.k", C, shared)
        v = self.linear(x, f"{name}.v", C, shared)
        if config.qk_norm:
            q = self.norm(self.cast(q, self.width), f"{name}.q_norm", config.head_size)
            k = self.norm(self.cast(k, self.width), f"{name}.k_norm", config.head_size)
        if config.position == "rotary":
            q, k = self.rotate(q), self.rotate(k)
        q, k = self.cast(q, v.width), self.cast(k, v.width)
        return self.linear(self.attend(q, k, v), f"{name}.o", inner, C)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary positions save nothing for backward; 16-bit tensors are rotated in float32."""
        if x.width == 4:
            return self.pointwise(x)
        self.tape.temporary(6 * x.size)
        return self.pointwise(x, scratch=5 * x.size)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Torch's flash kernel saves one float32 for each query and head."""
        config = self.config
        assert config.n_head
        dropped = config.dropout > 0 and self.tape.learning
        # On a GPU torch's float32 kernel has no shared heads; on a CPU it has no dropout.
        gpu_kernel = q.width == 2 or config.n_kv_head == config.n_head
        has_kernel = not dropped if self.device == "cpu" else gpu_kernel
        if not has_kernel:
            return self.attend_by_all(q, k, v, dropped)
        saved = [q.buffer, k.buffer, v.buffer, self.tape.new(self.tokens * config.n_head * 4)]
        saved += [self.mask] if self.mask else []
        shapes = [(x.size, x.needs_gradient) for x in (q, k, v)]

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            made = [(self.tape.temporary(size), needed) for size, needed in shapes]
            return [one if needed else None for one, needed in made]

        return self.tape.apply(
            q.numbers, q.width, [q, k, v], saved, saves_output=True, backward=backward
        )

    def attend_by_all(self, q: Tensor, k: Tensor, v: Tensor, dropped: bool) -> Tensor:
        """Attention with the scores of all pairs of positions, where torch has no kernel."""
        width, numbers, size = q.width, q.numbers, self.config.block_size
        assert self.config.n_head
        pairs = self.tokens * self.config.n_head * size
        q = self.cast(q, 4)
        k, v = (self.cast(self.repeated(x, numbers), 4) for x in (k, v))
        scaled = [self.pointwise(self.pointwise(x)) for x in (q, k)]
        scores = self.product(pairs, *scaled)
        weights = self.pointwise(self.pointwise(scores), saves_output=True)
        del scores
        if dropped:
            weights = self.pointwise(weights, self.tape.new(4 * pairs))
        # Torch also returns the weights, converted to 16 bits.
        unused = self.tape.new(2 * pairs) if width == 2 else None
        out = self.cast(self.product(numbers, weights, self.pointwise(v)), width)
        del unused
        return self.pointwise(out)  # .contiguous()

    def repeated(self, x: Tensor, numbers: int) -> Tensor:
        """Keys or values, repeated for each query head."""
        return x if x.numbers == numbers else self.tape.apply(numbers, x.width, [x])

    def mlp(self, x: Tensor, name: str) -> Tensor:
        """SwiGLU, or the classic MLP."""
        C, size = self.config.n_embed, self.config.intermediate_size
        assert size

        def down(*parts: Tensor) -> Tensor:
            inner = self.activated(*parts)
            del parts
            return self.linear(inner, f"{name}.down", size, C)

        gate = [self.linear(x, f"{name}.gate", C, size)] if self.config.mlp == "swiglu" else []
        return self.recomputed(down, *gate, self.linear(x, f"{name}.up", C, size))

    def activated(self, x: Tensor, up: Tensor | None = None) -> Tensor:
        """silu(x) * up, gelu(x), or relu(x) ** 2."""
        if up is not None:
            # The gradient of x takes the place of the output's.
            return self.tape.apply(up.numbers, up.width, [x, up], [x.buffer, up.buffer], passes=1)
        if self.config.mlp != "relu2":
            return self.pointwise(x, x.buffer)
        relu = self.pointwise(x, saves_output=True)
        return self.pointwise(relu, relu.buffer, scratch=2 * x.size)

    def loss(self, x: Tensor, V: int) -> Tensor:
        """Cross-entropy of :mod:`llm.functional.loss`, from all logits or in chunks."""
        how, before = self.config.loss, self.tape.kind
        self.tape.kind = "logits and loss"
        full = how == "full" or (how == "auto" and V < LARGE_VOCABULARY)
        loss = self.full_loss(x, V) if full else self.chunked_loss(x, V)
        self.tape.kind = before
        return loss

    @property
    def head(self) -> str:
        """The name of the matrix that makes logits."""
        return "embed" if self.config.tie_embeddings else "head"

    def full_loss(self, x: Tensor, V: int) -> Tensor:
        """All logits at once, and their log-softmax."""
        x = self.for_products(x)
        logits = self.cast(self.matrix(x, f"{self.head}.weight", self.config.n_embed, V), 4)
        del x
        return self.tape.apply(1, 4, [logits], [self.tape.new(logits.size)], scratch=logits.size)

    def chunked_loss(self, x: Tensor, V: int) -> Tensor:
        """The gradients are computed with the loss, one chunk of tokens after another."""
        tape, width, C = self.tape, 2 if self.autocast else self.width, self.config.n_embed
        rows, head = min(CHUNK, self.tokens), self.weight(f"{self.head}.weight", V, C)
        cpu, learns = self.device == "cpu", [x.needs_gradient, head.needs_gradient]
        weight = tape.new(2 * head.numbers) if width != self.width else None
        for_x = tape.new(x.size) if learns[0] else None
        # The head's gradient is summed in float32; in parts, if it is converted to 16 bits later.
        each = ROWS if self.width == 2 else V
        starts = range(0, V, each) if learns[1] else ()
        parts = [tape.new(4 * C * min(each, V - start)) for start in starts]
        chunk = [tape.new(rows * V * width), tape.new(rows * V * 4)]
        if width == 2:
            chunk.append(tape.new(rows * C * 2))  # of x
            tape.new(rows * V * 4)  # the products in float32
            # On a CPU the head's gradient is a float32 product; so is the gradient of a float16 x.
            rounded = learns[0] and not self.float16 if cpu else any(learns)
            narrow = tape.new(rows * V * 2) if rounded else None
            product = tape.new(4 * C * min(ROWS, V)) if learns[1] and not cpu else None
            for_rows = tape.new(rows * C * 4) if learns[0] and self.float16 else None
            del narrow, product, for_rows
        del chunk, weight
        if self.width == 2 and parts:
            narrowed = []
            while parts:
                narrowed.append(tape.new(parts.pop(0).size // 2))
            parts = [tape.new(2 * head.numbers)]
            del narrowed
        saved = [gradient for gradient in (for_x, *parts) if gradient]

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            gradients = iter(saved)
            return [next(gradients) if needed else None for needed in learns]

        return tape.apply(1, 4, [x, head], saved, backward=backward)
