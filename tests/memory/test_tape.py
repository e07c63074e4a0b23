"""Autograd's memory on a tape: what is held, how long, and what a recomputed part leaves out."""

import gc

from llm.memory.tape import Buffer, Leaf, Meter, Tape, Tensor

SIZE = 1024  # bytes of every tensor here; weights have a kind of their own


def made(trained: bool = True) -> tuple[Meter, Tape, Tensor, Leaf]:
    meter = Meter()
    tape = Tape(meter)
    leaf = Leaf(tape.new(SIZE, "weights"), "w", (SIZE // 4,), 4)
    return meter, tape, Tensor(leaf.buffer, SIZE // 4, 4, leaf if trained else None), leaf


def squared(tape: Tape, x: Tensor) -> Tensor:
    def backward(gradient: Buffer, saved: list[Buffer]) -> list[Buffer | None]:
        return [tape.temporary(SIZE)]

    return tape.apply(x.numbers, x.width, [x], [x.buffer], backward)


def thrice(tape: Tape, x: Tensor) -> Tensor:
    return squared(tape, squared(tape, squared(tape, x)))


def test_a_tensor_counts_until_nothing_refers_to_it_and_in_blocks_of_512_bytes() -> None:
    meter = Meter()
    one, other = Buffer(meter, 600, "a"), Buffer(meter, 1, "b")
    assert (meter.total, dict(meter.held)) == (1536, {"a": 1024, "b": 512})
    del one
    assert (meter.total, meter.held["a"]) == (512, 0)
    other.relabel("a")
    assert (meter.held["a"], meter.held["b"], meter.total) == (512, 0, 512)
    assert meter.peaks[""] == (1536, {"a": 1024, "b": 512})


def test_what_a_gradient_needs_is_kept_until_it_has_been_used() -> None:
    meter, tape, weight, leaf = made()
    out = thrice(tape, weight)
    assert meter.held["activations"] == 3 * SIZE  # two that are kept, and the result
    tape.backward(out, lambda leaf: None, "backward")
    del out
    gc.collect()
    assert leaf.gradient is not None
    assert {kind: size for kind, size in meter.held.items() if size} == {
        "weights": SIZE, "gradients": SIZE,
    }  # fmt: skip


def test_nothing_is_kept_where_nothing_is_trained() -> None:
    meter, tape, weight, _ = made(trained=False)
    out = thrice(tape, weight)
    assert not out.learns and not tape.nodes
    assert meter.held["activations"] == SIZE
    again = tape.checkpoint(lambda x: thrice(tape, x), weight)
    assert not again.learns and not tape.frames


def test_a_part_that_is_computed_again_keeps_its_inputs_only() -> None:
    meter, tape, weight, leaf = made()
    out = tape.checkpoint(lambda x: thrice(tape, x), weight)
    assert meter.held["activations"] == SIZE
    tape.backward(out, lambda leaf: None, "backward")
    assert leaf.gradient is not None
    _, most = max(meter.peaks.values(), key=lambda peak: peak[0])
    assert most["temporaries"] > SIZE  # here they were again


def test_of_what_is_computed_again_only_what_is_still_wanted_is_held() -> None:
    _, tape, weight, _ = made()
    frozen = Tensor(tape.new(SIZE, "input"), SIZE // 4, 4)

    def function(x: Tensor, start: Tensor) -> Tensor:
        fresh = thrice(tape, start)  # a tensor that is nobody's but the inner part's input
        inner = tape.checkpoint(lambda x: thrice(tape, x), fresh)  # keeps nothing of it
        assert not inner.learns
        return thrice(tape, x)

    out = tape.checkpoint(function, weight, frozen)
    (frame,) = tape.frames
    wanted = sum(slot() is not None for slot in frame.slots)
    assert wanted == len(frame.slots) - 1
    tape.backward(out, lambda leaf: None, "backward")
    assert not frame.again, "all that was computed again has been used"
