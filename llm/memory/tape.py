"""What autograd holds from moment to moment, told from sizes alone.

A forward pass written with :class:`Tape` allocates, keeps and frees as torch does: a tensor is here
a number of bytes that counts as long as something refers to it. ``Tape.backward`` then goes through
the recorded operations in reverse. So the peak of a training step is found in milliseconds, and
without torch.
"""

import contextlib
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import cast

BLOCK = 512  # bytes; CUDA's allocator rounds every tensor up to so many, and MemTracker with it


class Meter:
    """Bytes held, by kind, and for each phase what they were when their sum was highest."""

    def __init__(self) -> None:
        self.held: defaultdict[str, int] = defaultdict(int)
        self.total, self.phase = 0, ""
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}

    def add(self, kind: str, size: int) -> None:
        """Count ``size`` more bytes, or fewer."""
        self.held[kind] += size
        self.total += size
        if size > 0 and self.total > self.peaks.get(self.phase, (-1,))[0]:
            self.peaks[self.phase] = (self.total, dict(self.held))


class Buffer:
    """Memory that counts until the last reference to it is gone."""

    __slots__ = ("kind", "meter", "size")

    def __init__(self, meter: Meter, size: int, kind: str) -> None:
        self.meter, self.size, self.kind = meter, -(-size // BLOCK) * BLOCK, kind
        meter.add(kind, self.size)

    def __del__(self) -> None:
        self.meter.add(self.kind, -self.size)

    def relabel(self, kind: str) -> None:
        """Count it as another kind from here on."""
        self.meter.held[self.kind] -= self.size
        self.meter.held[kind] += self.size
        self.kind = kind


class Leaf:
    """A parameter. ``arrived`` is told when its whole gradient is there, and may take it away."""

    def __init__(self, buffer: Buffer, name: str, shape: tuple[int, ...], width: int) -> None:
        self.buffer, self.name, self.shape, self.width = buffer, name, shape, width
        self.numbers = math.prod(shape)
        self.gradient: Buffer | None = None
        self.uses = 0  # operations that still owe it a part of its gradient


class Node:
    """An operation that has been done: what it keeps, and how gradients go back through it."""

    __slots__ = ("backward", "inputs", "phase", "saved")

    def __init__(
        self, phase: str, inputs: "list[Tensor]", saved: "list[Slot]", backward: "Backward"
    ) -> None:
        self.phase, self.saved, self.backward = phase, saved, backward
        self.inputs = [tensor.source for tensor in inputs]


Source = Node | Leaf | None  # where a gradient goes on to
# From the gradient of the output, and what was kept, to those of the inputs in their order.
Backward = Callable[[Buffer, list[Buffer]], list[Buffer | None]]


class Tensor:
    """``numbers`` of ``width`` bytes each; without a ``source``, nothing before it is trained."""

    __slots__ = ("buffer", "numbers", "source", "width")

    def __init__(self, buffer: Buffer, numbers: int, width: int, source: Source = None) -> None:
        self.buffer, self.numbers, self.width, self.source = buffer, numbers, width, source

    @property
    def learns(self) -> bool:
        """Whether a gradient is wanted of it."""
        return self.source is not None


class Slot:
    """Something kept for the backward pass, or to be computed again there by a ``frame``."""

    __slots__ = ("__weakref__", "buffer", "frame", "place")

    def __init__(self, buffer: Buffer | None, frame: "Frame | None" = None, place: int = 0) -> None:
        self.buffer, self.frame, self.place = buffer, frame, place

    def unpack(self) -> Buffer:
        """What was kept; it is no more referred to by a frame afterwards."""
        if self.frame is None:
            return cast(Buffer, self.buffer)
        return self.frame.unpack(self.place)


class _Stop(Exception):
    pass  # everything that is needed has been computed again


class Frame:
    """A part of the forward pass of which only the inputs are kept (torch.utils.checkpoint)."""

    def __init__(self, tape: "Tape", function: Callable[..., Tensor], inputs: "list[Tensor]"):
        self.tape, self.function = tape, function
        self.inputs = [(tape.save(t.buffer), t.numbers, t.width, t.learns) for t in inputs]
        self.again: dict[int, Buffer] = {}
        self.slots: list[weakref.ref[Slot]] = []
        self.replayed = False

    def unpack(self, place: int) -> Buffer:
        if not self.replayed:
            self.replayed = True
            self._replay()
        return self.again.pop(place)

    def _replay(self) -> None:
        inputs = [
            Tensor(slot.unpack(), numbers, width, _NOTHING if learns else None)
            for slot, numbers, width, learns in self.inputs
        ]
        before, self.tape.kind = self.tape.kind, "temporaries"
        with self.tape.context(_Replay(self)), contextlib.suppress(_Stop):
            self.function(*inputs)
        self.tape.kind = before


class _Replay:
    def __init__(self, frame: Frame) -> None:
        self.frame, self.place = frame, 0

    def save(self, buffer: Buffer) -> Slot:
        if self.frame.slots[self.place]():  # else nobody is left who wants it
            self.frame.again[self.place] = buffer
        self.place += 1
        if self.place == len(self.frame.slots):
            raise _Stop
        return Slot(None)


class _Record:
    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def save(self, buffer: Buffer) -> Slot:
        slot = Slot(None, self.frame, len(self.frame.slots))
        self.frame.slots.append(weakref.ref(slot))
        return slot


class Tape:
    """Records operations, as autograd does while ``learning``."""

    def __init__(self, meter: Meter, learning: bool = True) -> None:
        self.meter, self.learning = meter, learning
        self.nodes: list[Node] = []
        self.frames: list[Frame] = []
        self.contexts: list[_Record | _Replay] = []
        self.kind = "activations"  # of what the forward pass makes

    def new(self, size: int, kind: str | None = None) -> Buffer:
        """Memory for ``size`` bytes."""
        return Buffer(self.meter, size, kind or self.kind)

    def temporary(self, size: int) -> Buffer:
        """Memory of a moment, or of a gradient on its way."""
        return Buffer(self.meter, size, "temporaries")

    def save(self, buffer: Buffer) -> Slot:
        """Keep something for the backward pass."""
        return self.contexts[-1].save(buffer) if self.contexts else Slot(buffer)

    @contextlib.contextmanager
    def context(self, what: "_Record | _Replay") -> Iterator[None]:
        """Save by the rules of ``what`` while inside."""
        self.contexts.append(what)
        try:
            yield
        finally:
            self.contexts.pop()

    def apply(
        self, numbers: int, width: int, inputs: list[Tensor], saved: list[Buffer],
        backward: Backward, out: Buffer | None = None, kind: str | None = None,
    ) -> Tensor:  # fmt: skip
        """The result of an operation. ``out`` is its memory where that is not new: a view."""
        if not any(tensor.learns for tensor in inputs):
            return Tensor(out or self.new(numbers * width, kind), numbers, width)
        slots = [self.save(buffer) for buffer in saved]  # before the result is made: see _Stop
        node = Node(self.meter.phase, inputs, slots, backward)
        if not any(isinstance(context, _Replay) for context in self.contexts):
            self.nodes.append(node)
            for source in node.inputs:
                if isinstance(source, Leaf):
                    source.uses += 1
        return Tensor(out or self.new(numbers * width, kind), numbers, width, node)

    def checkpoint(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function(*inputs)``, of which everything else is computed again when it is needed."""
        if not self.learning:
            return function(*inputs)
        frame = Frame(self, function, list(inputs))
        with self.context(_Record(frame)):
            out = function(*inputs)
        if frame.slots:  # else there is nothing to be computed again
            self.frames.append(frame)
        return out

    def backward(
        self, loss: Tensor, arrived: Callable[[Leaf], object], name: str, retain: bool = False
    ) -> None:
        """Send gradients from ``loss`` to all leaves; what was kept goes as it is used.

        ``arrived`` is told of each leaf whose gradient is whole, and may take it away. ``name`` is
        put before the phases. ``retain``: everything kept stays, for another backward pass.
        """
        pending: dict[Source, Buffer] = {loss.source: self.temporary(4)}
        owed = {n: n.uses for node in self.nodes for n in node.inputs if isinstance(n, Leaf)}
        nodes = list(self.nodes) if retain else self.nodes
        frames = list(self.frames) if retain else []
        self.frames.clear()  # from now on only what needs them refers to them
        while nodes:
            node = nodes.pop()
            gradient = pending.pop(node)
            self.meter.phase = f"{name} {node.phase}"
            found = node.backward(gradient, [slot.unpack() for slot in node.saved])
            if not retain:
                node.saved.clear()
            del gradient
            for source in node.inputs:
                part = found.pop(0)
                if source is None or part is None:
                    continue
                if source in pending:
                    # Out of place, as torch does while anything watches it (a tracker).
                    pending[source] = self.temporary(max(part.size, pending[source].size))
                else:
                    pending[source] = part
                del part
                if isinstance(source, Leaf):
                    owed[source] -= 1
                    if not owed[source]:
                        self._accumulate(source, pending.pop(source))
                        arrived(source)
        assert not pending, "a gradient that went nowhere"
        for frame in frames:  # the next pass computes again what it needs
            frame.replayed = False
        self.frames = frames

    def _accumulate(self, leaf: Leaf, gradient: Buffer) -> None:
        if leaf.gradient is None:  # else it is added in place
            gradient.relabel("gradients")
            leaf.gradient = gradient


_NOTHING = Node("", [], [], lambda gradient, saved: [])  # of what is computed again
