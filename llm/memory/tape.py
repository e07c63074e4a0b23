"""A simulation of autograd's memory from tensor sizes alone, without torch.

A forward pass written for :class:`Tape` allocates, saves and frees memory as torch does: a buffer
counts as long as Python refers to it. :meth:`Tape.backward` then runs the recorded operations in
reverse. It takes about a millisecond to simulate a training step.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

ALIGNMENT = 512  # bytes; CUDA's allocator and MemTracker round each tensor up to a multiple
UNLIMITED = 2**60


def aligned(size: int) -> int:
    """``size`` bytes, rounded up as an allocator does."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Meter:
    """Allocated bytes by kind, and for each phase its peak: the total, and the bytes by kind."""

    def __init__(self) -> None:
        self.allocated: defaultdict[str, int] = defaultdict(int)
        self.total, self.phase = 0, ""
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}

    def add(self, kind: str, size: int) -> None:
        """Count ``size`` more bytes, or fewer if it is negative."""
        self.allocated[kind] += size
        self.total += size
        if size > 0 and self.total > self.peaks.get(self.phase, (-1,))[0]:
            self.peaks[self.phase] = (self.total, dict(self.allocated))


class Buffer:
    """Memory, metered until the last reference to it is gone."""

    __slots__ = ("kind", "meter", "size")

    def __init__(self, meter: Meter, size: int, kind: str) -> None:
        self.meter, self.size, self.kind = meter, aligned(size), kind
        meter.add(kind, self.size)

    def __del__(self) -> None:
        self.meter.add(self.kind, -self.size)

    def relabel(self, kind: str) -> None:
        """Meter it as another kind from now on."""
        self.meter.allocated[self.kind] -= self.size
        self.meter.allocated[kind] += self.size
        self.kind = kind


class Parameter:
    """A weight and its gradient. Only the gradient is metered: weights take constant memory."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape, self.numbers = name, shape, prod(shape)
        self.gradient: Buffer | None = None


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor as autograd sees it, without values."""

    buffer: Buffer
    numbers: int  # its elements
    width: int  # bytes per element
    source: "Source | None" = None  # where its gradient goes; None: it needs no gradient

    @property
    def size(self) -> int:
        """In bytes."""
        return self.numbers * self.width

    @property
    def needs_gradient(self) -> bool:
        """Torch's ``requires_grad``."""
        return self.source is not None


class Input:
    """The source of an input of a checkpointed function: its gradient stops there."""


class Node:
    """A recorded operation: its place in the network, its saved buffers, its backward pass.

    ``saves``: whether it saves anything. In the first run of a checkpointed function ``saved`` is
    empty all the same.
    """

    def __init__(
        self, place: str, inputs: Sequence[Tensor], saved: list[Buffer], saves: bool,
        backward: "Backward",
    ) -> None:  # fmt: skip
        self.place, self.saved, self.saves, self.backward = place, saved, saves, backward
        self.sources = [tensor.source for tensor in inputs]


class Checkpoint:
    """A part of the forward pass that saves only its inputs, as under torch.utils.checkpoint.

    The backward pass runs ``function`` again, until it has saved ``count`` buffers. ``ends`` and
    ``first`` are the sources of the inputs and the operations of the first run. Its last operations
    may save nothing: torch computes their gradients before it runs ``function`` again.
    """

    def __init__(
        self, place: str, function: "Callable[..., Tensor]", inputs: Sequence[Tensor], count: int,
        ends: "list[Source | None]", first: "list[Node | Checkpoint]",
    ) -> None:  # fmt: skip
        self.place, self.function, self.count = place, function, count
        self.ends, self.first = ends, first
        self.saved = list(inputs)
        self.sources = [tensor.source for tensor in inputs]

    @property
    def early(self) -> "list[Node | Checkpoint]":
        """The last operations of the first run, as far as they save nothing."""
        late = [
            n for n, node in enumerate(self.first) if isinstance(node, Checkpoint) or node.saves
        ]
        return self.first[late[-1] + 1 :] if late else []


Source = Node | Checkpoint | Parameter | Input
# (gradient of an operation's output, its saved buffers) -> gradients of its inputs
Backward = Callable[[Buffer, list[Buffer]], list[Buffer | None]]


class Tape:
    """Records operations as autograd does; ``learning=False`` is ``torch.no_grad``."""

    def __init__(self, meter: Meter, learning: bool = True) -> None:
        self.meter, self.learning = meter, learning
        self.nodes: list[Node | Checkpoint] = []
        self.uses: Counter[Parameter] = Counter()  # the number of operations that read each
        self.kept: list[Buffer] = []  # by operations themselves, until the whole graph is freed
        self.place = ""  # in the network
        self.kind = "activations"  # the kind of memory that operations allocate
        self.recording = True  # off in the first run of a checkpointed function
        self.saves_left = UNLIMITED  # a recomputation stops after its last saved buffer

    def enter(self, place: str) -> None:
        """Name the next part of the network."""
        self.place = self.meter.phase = place

    def new(self, size: int, kind: str | None = None) -> Buffer:
        """Allocate ``size`` bytes."""
        return Buffer(self.meter, size if self.saves_left > 0 else 0, kind or self.kind)

    def temporary(self, size: int) -> Buffer:
        """Allocate ``size`` bytes of scratch memory, or for a gradient in flight."""
        return self.new(size, "temporaries")

    def apply(
        self, numbers: int, width: int, inputs: Sequence[Tensor], saved: Sequence[Buffer] = (), *,
        saves_output: bool = False, scratch: int = 0, passes: int = 0,
        backward: Backward | None = None, kind: str | None = None,
    ) -> Tensor:  # fmt: skip
        """The output of an operation that saves ``saved`` for its backward pass.

        By default the backward pass hands the output's gradient to the first ``passes`` inputs, and
        allocates ``scratch`` bytes and a gradient for each of the others.
        """
        if not any(tensor.needs_gradient for tensor in inputs):
            return Tensor(self.new(numbers * width, kind), numbers, width)
        output = self.new(numbers * width, kind) if saves_output else None
        buffers = [*saved, output] if output else list(saved)
        self.saves_left -= len(buffers)
        backward = backward or self._default_backward(inputs, scratch, passes)
        kept = buffers if self.recording else []
        node = Node(self.place, inputs, kept, bool(buffers), backward)
        self._record(node, inputs)
        return Tensor(output or self.new(numbers * width, kind), numbers, width, node)

    def _default_backward(self, inputs: Sequence[Tensor], scratch: int, passes: int) -> Backward:
        sizes = [tensor.size if tensor.needs_gradient else None for tensor in inputs[passes:]]

        def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
            during = self.temporary(scratch)
            made = [None if size is None else self.temporary(size) for size in sizes]
            del during
            return [gradient] * passes + made

        return backward

    def _record(self, node: Node | Checkpoint, inputs: Sequence[Tensor]) -> None:
        self.uses.update(t.source for t in inputs if isinstance(t.source, Parameter))
        self.nodes.append(node)

    def checkpoint(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function(*inputs)``, recomputed in the backward pass: only the inputs are saved."""
        self.saves_left -= len(inputs)
        recording, left, nodes = self.recording, self.saves_left, self.nodes
        limit = UNLIMITED if left > 0 else 0
        self.recording, self.saves_left, self.nodes = False, limit, []
        ends = _detached(inputs)
        output = function(*ends)
        count, first = limit - self.saves_left, self.nodes
        self.recording, self.saves_left, self.nodes = recording, left, nodes
        if not output.needs_gradient:
            return output
        kept = inputs if recording else ()
        node = Checkpoint(self.place, function, kept, count, [t.source for t in ends], first)
        self._record(node, inputs)
        return Tensor(output.buffer, output.numbers, output.width, node)

    def backward(
        self, loss: Tensor, on_gradient: Callable[[Parameter], object], name: str,
        retain: bool = False,
    ) -> None:  # fmt: skip
        """Send gradients from ``loss`` to all parameters, freeing saved buffers after use.

        ``on_gradient`` is called with each parameter once its gradient is complete, and may free
        it. ``name`` is the first word of the phases; ``retain`` is torch's ``retain_graph``.
        """
        assert loss.source is not None
        pending: dict[Source, Buffer] = {loss.source: self.temporary(4)}
        missing = Counter(self.uses)  # how many gradients each parameter is still to receive

        def run(nodes: list[Node | Checkpoint], nested: bool = False) -> None:
            while nodes:
                node = nodes.pop()
                self.place, self.meter.phase = node.place, f"{name} {node.place}"
                if isinstance(node, Node):
                    # no variable here refers to the gradient, or it would be freed too late
                    gradients = node.backward(pending.pop(node), node.saved)
                else:
                    gradients = through(node, nested)
                if nested or not retain:
                    node.saved.clear()
                for source in node.sources:
                    send(source, gradients.pop(0))

        def through(part: Checkpoint, nested: bool) -> list[Buffer | None]:
            pending[part.first[-1]] = pending.pop(part)
            early = part.early
            run(list(early), nested=True)
            inputs = _detached(part.saved)
            ends = [tensor.source for tensor in inputs]
            if nested:  # torch frees recomputed inputs now, others with the last saved buffer
                part.saved.clear()
            nodes = self._recompute(part, inputs)
            del inputs
            for old, new in zip([*part.ends, *part.first], [*ends, *nodes], strict=True):
                if old in pending and new:
                    pending[new] = pending.pop(old)
            del nodes[len(nodes) - len(early) :]
            run(nodes, nested=True)
            return [pending.pop(end, None) if end else None for end in ends]

        def send(source: Source | None, gradient: Buffer | None) -> None:
            if source is None or gradient is None:
                return
            if source in pending:
                # The sum is out of place, as in torch while a MemTracker watches.
                gradient = self.temporary(max(gradient.size, pending[source].size))
            pending[source] = gradient
            del gradient
            if isinstance(source, Parameter):
                missing[source] -= 1
                if not missing[source]:
                    _accumulate(source, pending.pop(source))
                    on_gradient(source)

        run(list(self.nodes) if retain else self.nodes)
        assert not pending, "a gradient has not arrived"

    def _recompute(self, part: Checkpoint, inputs: Sequence[Tensor]) -> list[Node | Checkpoint]:
        """Run the function of ``part`` again; its operations."""
        nodes, uses, kind, kept = self.nodes, self.uses, self.kind, self.kept
        self.nodes, self.uses, self.kind, self.kept = [], Counter(), "temporaries", []
        self.saves_left = part.count
        part.function(*inputs)
        self.saves_left = UNLIMITED
        recorded = self.nodes
        self.nodes, self.uses, self.kind, self.kept = nodes, uses, kind, kept
        return recorded


def _detached(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs of a checkpointed function, with sources of their own."""
    return [
        Tensor(t.buffer, t.numbers, t.width, Input() if t.needs_gradient else None) for t in inputs
    ]


def _accumulate(parameter: Parameter, gradient: Buffer) -> None:
    if parameter.gradient is None:  # otherwise it is added in place
        gradient.relabel("gradients")
        parameter.gradient = gradient
