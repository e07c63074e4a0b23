"""The tape allocates, frees and recomputes as autograd does."""

import gc

from llm.memory.tape import Buffer, Meter, Parameter, Tape, Tensor

SIZE = 1024  # bytes of every tensor here


def squared(tape: Tape, x: Tensor) -> Tensor:
    return tape.apply(x.numbers, x.width, [x], [x.buffer])


def thrice(tape: Tape, x: Tensor) -> Tensor:
    return squared(tape, squared(tape, squared(tape, x)))


def started(trained: bool = True) -> tuple[Tape, Tensor, Parameter]:
    tape, weight = Tape(Meter()), Parameter("w", (SIZE // 4,))
    return tape, Tensor(tape.new(0), SIZE // 4, 4, weight if trained else None), weight


def test_a_buffer_counts_in_blocks_of_512_bytes_until_nothing_refers_to_it() -> None:
    meter = Meter()
    one, other = Buffer(meter, 600, "a"), Buffer(meter, 1, "b")
    assert (meter.total, dict(meter.allocated)) == (1536, {"a": 1024, "b": 512})
    del one
    other.relabel("a")
    assert (meter.allocated["a"], meter.allocated["b"], meter.total) == (512, 0, 512)
    assert meter.peaks[""] == (1536, {"a": 1024, "b": 512})


def test_saved_buffers_are_freed_once_the_backward_pass_has_used_them() -> None:
    tape, x, weight = started()
    out = thrice(tape, x)
    assert tape.meter.allocated["activations"] == 3 * SIZE  # two saved buffers, and the output
    tape.backward(out, lambda parameter: None, "backward")
    del out
    gc.collect()
    assert weight.gradient is not None
    assert {kind for kind, size in tape.meter.allocated.items() if size} == {"gradients"}


def test_nothing_is_saved_without_trained_weights() -> None:
    tape, x, _ = started(trained=False)
    out = thrice(tape, x)
    again = tape.checkpoint(lambda x: thrice(tape, x), x)
    assert not (out.needs_gradient or again.needs_gradient or tape.nodes)
    assert tape.meter.allocated["activations"] == 2 * SIZE


def test_a_checkpointed_part_saves_only_its_inputs_at_any_depth() -> None:
    for depth in (1, 2, 3):
        tape, x, weight = started()

        def part(x: Tensor, depth: int = depth, tape: Tape = tape) -> Tensor:
            inner = tape.checkpoint(lambda x: part(x, depth - 1, tape), x) if depth > 1 else x
            return thrice(tape, inner)

        out = tape.checkpoint(part, x)
        assert tape.meter.allocated["activations"] == SIZE
        tape.backward(out, lambda parameter: None, "backward")
        assert weight.gradient is not None
        _, most = max(tape.meter.peaks.values(), key=lambda peak: peak[0])
        # Each part recomputes two buffers besides its input, and has the gradient of one of them.
        assert most["temporaries"] <= (depth + 2) * SIZE + 512
