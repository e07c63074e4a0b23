"""Predict the peak memory of a run from its options, without torch.

One step of a few layers is simulated on a :class:`llm.memory.tape.Tape`; each further layer adds
the same amount. tests/memory/ compares the result with torch's MemTracker.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from llm.memory.custom import CustomState
from llm.memory.network import Network
from llm.memory.tape import Meter, Parameter, Tape, aligned
from llm.memory.updates import EIGHT_BIT_COPIES, state_bytes, step_bytes
from llm.memory.weights import ALL, Weight, stored_bytes, trained_weights, weights_of, without_layer
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions

Lines = dict[str, int]  # bytes by kind of memory
QUANTISING = 17  # bytes per number while llm/model/quantised.py quantises a matrix
# The constants are measured on a CPU by python -m benchmarks.memory, in the rows named here.
COMPILE_HEADROOM = 400 * 2**20  # torch.compile and the code it makes (compile_headroom)
COMPILER_IMPORTED = 90 * 2**20  # activation checkpointing and bitsandbytes import it (rss_*)
BITSANDBYTES = 50 * 2**20  # the library itself (rss_*)
# Memory that the allocator cannot use, as a share of the tensors. CUDA's allocator takes pages of
# 2 MiB and keeps freed ones (assumed, not yet measured on a GPU). On a CPU the tensors of narrow
# networks are too small for pages of their own (rss_*).
FRAGMENTS, NARROW_FRAGMENTS, WIDE = 0.03, 0.5, 512
# A step of adapters takes its tensors from the heap (llm.device.tune_allocator), which has gaps
# between those that come and go, more if their types differ (rss_smollm2).
ADAPTER_FRAGMENTS, ADAPTER_16_BIT_FRAGMENTS = 0.45, 1.2


@dataclass(frozen=True)
class Setup:
    """Everything that the memory of a run depends on."""

    model: GPTConfig  # resolved
    optimizer: str = "adamw"  # or muon, or the name of a custom optimizer
    custom: CustomState | None = None  # the state of a custom optimizer
    state_bits: int = 32  # of AdamW's running means
    precision: str = "fp32"  # fp32 | bf16 | fp16 | bf16_weights
    batch_size: int = 8  # sequences per optimizer step
    micro_batch: int = 8  # sequences per forward pass
    activation_checkpointing: str = "none"
    step_in_backward: bool = False
    compile: bool = False
    device: str = "cpu"  # or cuda
    samples: bool = False  # whether text is sampled during training
    eval_only: bool = False
    saves_memory: bool = False  # tensors of narrow networks get pages of their own as well
    finetune: FinetuneOptions = field(default_factory=lambda: ALL)  # of for_memory()
    documents: bool = False  # whether rows are packed conversations
    reads_whole: bool = True  # whether all weights of a base are read before the first is used

    @property
    def width(self) -> int:
        """Bytes per element of a weight."""
        return 2 if self.precision == "bf16_weights" else 4

    @property
    def trained(self) -> list[Weight]:
        """The weights that get gradients."""
        return trained_weights(self.model, self.finetune)


@dataclass(frozen=True)
class Prediction:
    """Bytes at the peak of each kind of work; ``reserve`` is added to each."""

    # "training step", "evaluation", "sample", "checkpoint", and "resume" or "start"
    moments: dict[str, Lines]
    reserve: Lines

    @property
    def peak(self) -> str:
        """The kind of work with the highest peak."""
        return max(self.moments, key=lambda name: total(self.moments[name]))

    @property
    def lines(self) -> Lines:
        """Bytes at the peak, with the reserve."""
        return self.moments[self.peak] | self.reserve

    @property
    def tensors(self) -> int:
        """Bytes of tensors at the peak, without fragments."""
        return total(self.moments[self.peak]) - self.moments[self.peak]["fragments"]

    @property
    def total(self) -> int:
        """Bytes at the peak, with the reserve."""
        return total(self.lines)


def total(lines: Lines) -> int:
    """Bytes of all kinds together."""
    return sum(lines.values())


def predict(setup: Setup, reserve: Lines) -> Prediction:
    """The peak of ``setup``. ``reserve``: memory outside tensors."""
    cpu, constant = setup.device == "cpu", _constant(setup)
    step = max(training_step(setup, constant).values(), key=total)
    if cpu and setup.state_bits == 8:
        step["8-bit update"] = EIGHT_BIT_COPIES
    if cpu and setup.precision != "fp32":
        # A CPU sums the gradient of a 16-bit weight in float32, with half as much scratch memory;
        # torch does not see it (benchmarks.memory, row oom_deaths).
        step["16-bit products"] = 6 * max(weight.numbers for weight in setup.trained)
    evaluation = _without_gradients(setup, setup.micro_batch, with_loss=True) | constant
    moments = {"training step": step, "evaluation": evaluation, "checkpoint": dict(constant)}
    without_state = {"optimizer state": 0}
    if setup.eval_only:
        moments = {"evaluation": evaluation | without_state}
    if cpu:
        name = "start" if setup.finetune.is_partial else "resume"
        moments[name] = constant | without_state | _reading(setup)
    if setup.samples and not setup.eval_only:
        moments["sample"] = _sample(setup) | constant
    for lines in moments.values():
        lines["fragments"] = _fragments(setup, lines)
    return Prediction(moments, reserve | _libraries(setup))


def _fragments(setup: Setup, lines: Lines) -> int:
    """Memory that the allocator cannot use between the tensors ``lines``."""
    is_from_heap = setup.device == "cpu" and not setup.saves_memory
    if is_from_heap and setup.finetune.has_adapters:
        share = ADAPTER_FRAGMENTS if setup.precision == "fp32" else ADAPTER_16_BIT_FRAGMENTS
        return int(share * (total(lines) - lines["weights"]))
    is_narrow = is_from_heap and setup.model.n_embed < WIDE
    return int((NARROW_FRAGMENTS if is_narrow else FRAGMENTS) * total(lines))


def _reading(setup: Setup) -> Lines:
    """Weights in memory while they are read: a checkpoint's are read before they are copied, those
    of a base become the network's one after another (``fill`` in llm/interchange/source.py).
    """
    numbers = [w.numbers for w in weights_of(setup.model) for _ in range(w.layers)]
    dense = sum(aligned(number * setup.width) for number in numbers)
    if not setup.finetune.is_partial:
        return {"weights": dense, "weights read": dense}
    trained = sum(w.numbers * w.layers for w in setup.trained) * setup.width  # the resumed run's
    largest = 4 * max(numbers)
    if setup.finetune.stored_bits:  # a matrix and the intermediate results of its quantisation
        matrices = [
            w for w in weights_of(setup.model, setup.finetune) if w.name.startswith("blocks.")
        ]
        largest = max(largest, QUANTISING * max(w.numbers for w in matrices))
    one = {"weights read": largest + trained}
    return {"weights": dense} | one if setup.reads_whole else one


def _libraries(setup: Setup) -> Lines:
    """Memory of the libraries that some options load."""
    cpu, lines = setup.device == "cpu", {}
    if setup.compile:
        lines["compiler"] = COMPILE_HEADROOM
    elif cpu and (setup.activation_checkpointing != "none" or setup.state_bits == 8):
        lines["compiler, imported"] = COMPILER_IMPORTED
    if cpu and setup.state_bits == 8:
        lines["bitsandbytes"] = BITSANDBYTES
    return lines


def _constant(setup: Setup) -> Lines:
    """Weights and optimizer state: they take the same from the first step to the end."""
    config = setup.model
    assert config.head_size
    angles = 4 * 2 * config.block_size * config.head_size  # rotary's table, always allocated
    lines = {"weights": aligned(angles)}
    for weight in weights_of(config, setup.finetune):
        kind = "adapters" if weight.is_added else "weights"
        size = stored_bytes(weight, setup.finetune, setup.width)
        lines[kind] = lines.get(kind, 0) + size
    state = (aligned(_state_bytes(setup, weight)) * weight.layers for weight in setup.trained)
    return lines | {"optimizer state": sum(state)}


def _state_bytes(setup: Setup, weight: Weight) -> int:
    if setup.custom is None:
        return state_bytes(setup.optimizer, setup.state_bits, weight)
    return setup.custom.bytes(weight.name, weight.shape)


def _step_bytes(setup: Setup, weights: list[Weight]) -> int:
    if setup.custom is None:
        return step_bytes(setup.optimizer, weights, setup.width)
    numbers = sum(weight.numbers * weight.layers for weight in weights)
    return setup.custom.step_bytes(max(weight.numbers for weight in weights), numbers)


def training_step(setup: Setup, constant: Lines | None = None) -> dict[str, Lines]:
    """Bytes at the peak of each phase of an optimizer step."""
    constant = constant or _constant(setup)
    accumulates = setup.micro_batch < setup.batch_size
    gradients = sum(aligned(w.numbers * setup.width) * w.layers for w in setup.trained)
    steady = constant | {"gradients": gradients if accumulates else 0}
    phases = {
        phase: {kind: lines.get(kind, 0) + steady.get(kind, 0) for kind in steady | lines}
        for phase, lines in _phases(setup).items()
    }
    if not setup.step_in_backward:
        temporaries = _step_bytes(setup, setup.trained)
        phases["update"] = constant | {"gradients": gradients, "temporaries": temporaries}
    return phases


def _phases(setup: Setup) -> dict[str, Counter[str]]:
    """Peaks of the phases of forward and backward, without weights, state and whole gradients."""
    layers = setup.model.n_layer
    period = 2 if setup.activation_checkpointing == "every_2" else 1
    few = 2 * period + layers % period
    if not setup.finetune.treats_layers_alike:
        return _simulated(setup, layers, layers)
    if layers <= few + period:
        return _simulated(setup, layers, period)
    less, more = _simulated(setup, few, period), _simulated(setup, few + period, period)
    times = (layers - few) // period
    return {
        phase: Counter({
            kind: less[phase][kind] + times * (size - less[phase][kind])
            for kind, size in more[phase].items()
        })
        for phase in less
    }  # fmt: skip


_SIMULATED: dict[str, dict[str, Counter[str]]] = {}  # most points of a grid share an entry


def _simulated(setup: Setup, layers: int, period: int) -> dict[str, Counter[str]]:
    accumulates = setup.micro_batch < setup.batch_size
    few = replace(
        setup, model=replace(setup.model, n_layer=layers), samples=False, compile=False,
        batch_size=setup.micro_batch * (1 + accumulates),
    )  # fmt: skip
    key = repr(few)
    if key not in _SIMULATED:
        _SIMULATED[key] = _first_and_last(_step(few).peaks, layers, period)
    return _SIMULATED[key]


def _step(setup: Setup) -> Meter:
    """Forward and backward pass of a step; with ``step_in_backward`` also its updates."""
    meter = Meter()
    tape = Tape(meter)
    network = _network(tape, setup, setup.micro_batch)
    loss = network.forward(setup.activation_checkpointing)
    if setup.micro_batch < setup.batch_size:  # gradients exist from the previous micro-batch
        for parameter in network.parameters.values():
            parameter.gradient = tape.new(0)

    def update(parameter: Parameter) -> None:
        weight = Weight(without_layer(parameter.name), parameter.shape)
        tape.temporary(_step_bytes(setup, [weight]))
        parameter.gradient = None

    def free(parameter: Parameter) -> None:
        parameter.gradient = None

    if not setup.step_in_backward:
        tape.backward(loss, lambda parameter: None, "backward")
        return meter
    tape.backward(loss, free, "measuring", retain=True)
    tape.backward(loss, update, "backward")
    return meter


def _network(tape: Tape, setup: Setup, batch: int) -> Network:
    return Network(
        tape, setup.model, batch, setup.precision, setup.device, setup.finetune, setup.documents
    )


def _first_and_last(
    peaks: dict[str, tuple[int, dict[str, int]]], layers: int, period: int
) -> dict[str, Counter[str]]:
    """Drop the phases of the layers in the middle, whose peaks lie between the others'."""
    kept = {}
    for phase, (_, lines) in peaks.items():
        work, block, number = phase.partition("block ")
        if not block or int(number) < period:
            kept[phase] = Counter(lines)
        elif layers - int(number) <= period:
            kept[f"{work}last block {layers - int(number)}"] = Counter(lines)
    return kept


def _without_gradients(setup: Setup, batch: int, with_loss: bool) -> Lines:
    """The peak of a forward pass under ``torch.no_grad``."""
    layers = setup.model.n_layer
    few = replace(
        setup.model, n_layer=min(layers, 2) if setup.finetune.treats_layers_alike else layers
    )
    own = (setup.precision, setup.device, setup.finetune, setup.documents)
    key = repr((batch, with_loss, own, few))
    if key not in _SIMULATED:
        meter = Meter()
        network = _network(Tape(meter, learning=False), replace(setup, model=few), batch)
        network.forward(with_loss=with_loss)
        _, lines = max(meter.peaks.values(), key=lambda peak: peak[0])
        _SIMULATED[key] = {"": Counter(lines)}
    return dict(_SIMULATED[key][""])


def _sample(setup: Setup) -> Lines:
    """A text as long as the window, computed in the type of the weights, and its cache."""
    config = setup.model
    assert config.n_kv_head and config.head_size
    precision = setup.precision if setup.width == 2 else "fp32"
    alone = replace(setup, precision=precision, documents=False)
    lines = _without_gradients(alone, 1, with_loss=False)
    cached = 2 * config.n_layer * config.n_kv_head * config.head_size * config.block_size
    return lines | {"keys and values": cached * setup.width}
