"""How many bytes a run will hold at its peak, from its options alone and without torch.

One step is gone through on a :class:`llm.memory.tape.Tape`, for few layers; each layer more adds
the same again. The suite compares it with torch's MemTracker (tests/memory/).
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

from llm.checkpoint.shapes import Shapes, weight_shapes
from llm.memory.kept import Kept
from llm.memory.lora import LoRA
from llm.memory.network import Network
from llm.memory.tape import Leaf, Meter, Tape
from llm.memory.updates import COPIED, Weight, state_bytes, step_bytes
from llm.model.config import GPTConfig

Lines = dict[str, int]  # what takes how many bytes
KEPT = ("weights", "LoRA weights", "optimizer state")  # what is there all the time
# What torch.compile holds besides tensors once it has compiled a step, on a CPU: the compiler, and
# code (python -m benchmarks.memory, row compile_headroom).
COMPILE_HEADROOM = 400 * 2**20
# What torch imports on a CPU to compute blocks again, and bitsandbytes needs as well, if nothing
# is compiled; and bitsandbytes itself (rows rss_*).
COMPILER_IMPORTED = 90 * 2**20
BITSANDBYTES = 50 * 2**20
# What an allocator cannot fill, as a share of the tensors. CUDA's hands out pages of 2 MiB, and
# keeps what it once had (assumed, not yet measured on a GPU). On a CPU large tensors are mapped one
# by one, but for narrow networks: llm.device.tune_allocator (benchmarks.memory, rows rss_*).
FRAGMENTS, OF_NARROW, WIDE = 0.03, 0.5, 512


@dataclass(frozen=True)
class Setup:
    """Everything that the memory of a run depends on."""

    model: GPTConfig  # resolved
    optimizer: str = "adamw"  # or muon, or one of the user's own
    kept: Kept | None = None  # what one of the user's own was measured to keep
    state_bits: int = 32  # of AdamW's running means
    precision: str = "fp32"  # fp32 | bf16 | fp16 | bf16_weights
    batch_size: int = 8  # sequences per optimizer step
    micro_batch: int = 8  # sequences per forward pass
    activation_checkpointing: str = "none"
    step_in_backward: bool = False
    compile: bool = False
    device: str = "cpu"  # or cuda
    samples: bool = False  # whether text is written during training
    eval_only: bool = False
    closely: bool = False  # whether narrow networks too have their memory mapped
    lora: LoRA | None = None  # None: all weights are trained

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.precision == "bf16_weights" else 4


@dataclass(frozen=True)
class Prediction:
    """Bytes at the peak of each kind of work, line by line; ``reserve`` comes on top of each."""

    moments: dict[str, Lines]  # "training step", "evaluation", "sample", "checkpoint"
    reserve: Lines

    @property
    def peak(self) -> str:
        """The kind of work that takes most."""
        return max(self.moments, key=lambda name: _sum(self.moments[name]))

    @property
    def lines(self) -> Lines:
        """What is held at the peak."""
        return self.moments[self.peak] | self.reserve

    @property
    def tensors(self) -> int:
        """Bytes of tensors at the peak."""
        return _sum(self.moments[self.peak]) - self.moments[self.peak]["fragments"]

    @property
    def total(self) -> int:
        """Bytes at the peak, the reserve among them."""
        return _sum(self.lines)


def predict(setup: Setup, reserve: Lines) -> Prediction:
    """The peak of ``setup``. ``reserve``: what is no tensor, as named lines."""
    steps = training_step(setup)
    step = steps[max(steps, key=lambda phase: _sum(steps[phase]))]
    kept = {kind: steps["start"][kind] for kind in KEPT if kind in steps["start"]}
    cpu = setup.device == "cpu"
    if cpu and setup.state_bits == 8:
        step = step | {"8-bit update": COPIED}
    if cpu and setup.precision != "fp32":
        # A CPU's library sums the gradient of a 16-bit weight up in float32, unseen by torch, and
        # takes half as much again on the way (benchmarks.memory, row oom_deaths).
        step = step | {"16-bit products": 6 * max(map(math.prod, _trained(setup).values()))}
    evaluation = _without_gradients(setup, setup.micro_batch, True) | kept
    moments: dict[str, Lines] = {
        "training step": step,
        "evaluation": evaluation,
        "checkpoint": dict(kept),
    }
    if setup.eval_only:
        moments = {"evaluation": evaluation | {"optimizer state": 0}}
    if cpu:  # a GPU's weights come from a copy that is not on it
        moments["going on"] = kept | {"optimizer state": 0, "weights read": _read(setup)}
    if setup.samples and not setup.eval_only:
        moments["sample"] = _without_gradients(setup, 1, False) | kept
    narrow = cpu and setup.model.n_embed < WIDE and not setup.closely
    for lines in moments.values():
        lines["fragments"] = int((OF_NARROW if narrow else FRAGMENTS) * _sum(lines))
    return Prediction(moments, reserve | _libraries(setup))


def _libraries(setup: Setup) -> Lines:
    """What the compiler and some levers take for themselves."""
    cpu, lines = setup.device == "cpu", {}
    if setup.compile:
        lines["compiler"] = COMPILE_HEADROOM
    elif cpu and (setup.activation_checkpointing != "none" or setup.state_bits == 8):
        lines["compiler, imported"] = COMPILER_IMPORTED
    if cpu and setup.state_bits == 8:
        lines["bitsandbytes"] = BITSANDBYTES
    return lines


def _sum(lines: Lines) -> int:
    return sum(lines.values())


def training_step(setup: Setup) -> dict[str, Lines]:
    """What is held at the peak of each phase of an optimizer step."""
    period = 2 if setup.activation_checkpointing == "every_2" else 1
    layers = setup.model.n_layer
    few = 2 * period + layers % period
    if layers <= few + period:
        return {phase: dict(held) for phase, held in _step(setup, layers, period).items()}
    less, more = _step(setup, few, period), _step(setup, few + period, period)
    further = (layers - few) // period
    found = {
        phase: {
            kind: less[phase][kind] + further * (more[phase][kind] - less[phase][kind])
            for kind in more[phase]
        }
        for phase in more
        if phase in less
    }
    if "update" in found:  # not linear in layers: Muon takes some at a time
        of_a_layer = replace(setup, model=replace(setup.model, n_layer=1))
        weights = [(name, shape, setup.width) for name, shape in _trained(of_a_layer).items()]
        found["update"]["temporaries"] = _step_bytes(setup, weights, layers)
    return found


def _state_bytes(setup: Setup, weight: Weight) -> int:
    """Bytes kept from step to step for one weight."""
    if setup.kept is None:
        return state_bytes(setup.optimizer, setup.state_bits, weight)
    name, shape, _ = weight
    return setup.kept.bytes(name, shape)


def _step_bytes(setup: Setup, weights: list[Weight], layers: int = 1) -> int:
    """Temporaries at the peak of updating ``weights``, those of a layer ``layers`` times."""
    if setup.kept is None:
        return step_bytes(setup.optimizer, weights, layers)
    sizes = [(name, math.prod(shape)) for name, shape, _ in weights]
    total = sum(n * (layers if name.startswith("blocks.") else 1) for name, n in sizes)
    return setup.kept.step_bytes(max(n for _, n in sizes), total)


# The points of a grid share most of their answers.
_KNOWN: dict[tuple[object, ...], dict[str, Counter[str]]] = {}


def _step(setup: Setup, layers: int, period: int) -> dict[str, Counter[str]]:
    config, accumulates = setup.model, setup.micro_batch < setup.batch_size
    own = {**vars(setup), "model": None, "batch_size": accumulates, "samples": 0, "compile": 0}
    key = (*own.values(), *({**vars(config), "n_layer": layers}).values())
    if key not in _KNOWN:
        few = replace(setup, model=replace(config, n_layer=layers))
        _KNOWN[key] = _simulated(few, accumulates, period)
    return _KNOWN[key]


def _simulated(setup: Setup, accumulates: bool, period: int) -> dict[str, Counter[str]]:
    meter = Meter()
    tape = Tape(meter)
    meter.phase = "start"
    network = _network(tape, setup, setup.micro_batch)
    leaves = list(network.trained.values())
    weights = [(leaf.name, leaf.shape, leaf.width) for leaf in leaves]
    held = [tape.new(_state_bytes(setup, one), "optimizer state") for one in weights]
    if accumulates:
        for leaf in leaves:
            leaf.gradient = tape.new(leaf.numbers * leaf.width, "gradients")

    def update(leaf: Leaf) -> None:
        one = (leaf.name, leaf.shape, leaf.width)
        tape.temporary(_step_bytes(setup, [one]))
        leaf.gradient = None

    def measure(leaf: Leaf) -> None:
        leaf.gradient = None

    loss = network.forward(setup.activation_checkpointing)
    if setup.step_in_backward:
        tape.backward(loss, measure, "measuring", retain=True)
        tape.backward(loss, update, "backward")
    else:
        tape.backward(loss, lambda leaf: None, "backward")
        meter.phase = "update"
        tape.temporary(_step_bytes(setup, weights))
    del held
    return _ends(meter, setup.model.n_layer, period)


def _ends(meter: Meter, layers: int, period: int) -> dict[str, Counter[str]]:
    """The phases of the first and last layers; what is between them is between them."""
    found = {}
    for phase, (_, held) in meter.peaks.items():
        kind, block, number = phase.partition("block ")
        if not block or int(number) < period:
            found[phase] = Counter(held)
        elif layers - int(number) <= period:
            found[f"{kind}last block {layers - int(number)}"] = Counter(held)
    return found


def _network(tape: Tape, setup: Setup, batch: int) -> Network:
    return Network(tape, setup.model, batch, setup.precision, setup.device, setup.lora)


def _read(setup: Setup) -> int:
    """A checkpoint's weights, beside the network's, before they are copied into it."""
    numbers = n_parameters(setup.model) + (n_trained(setup) if setup.lora else 0)
    return numbers * setup.width


def _without_gradients(setup: Setup, batch: int, with_loss: bool) -> Lines:
    """An evaluation, or a text that grows to a full window, besides what is kept."""
    config, layers = setup.model, min(setup.model.n_layer, 2)
    few = replace(setup, model=replace(config, n_layer=layers))
    few = few if with_loss else _uncast(few)
    key = (batch, with_loss, few.precision, few.device, few.lora, *vars(few.model).values())
    if key not in _KNOWN:
        meter = Meter()
        _network(Tape(meter, learning=False), few, batch).forward(with_loss=with_loss)
        _KNOWN[key] = {"": Counter(max(meter.peaks.values(), key=lambda peak: peak[0])[1])}
    lines = dict(_KNOWN[key][""])
    if not with_loss:
        assert config.n_kv_head and config.head_size
        keys = 2 * config.n_layer * config.n_kv_head * config.head_size * config.block_size
        lines["keys and values"] = keys * setup.width
    return lines


def _uncast(setup: Setup) -> Setup:
    weights = setup.precision == "bf16_weights"
    return replace(setup, precision="bf16_weights" if weights else "fp32")


def n_parameters(config: GPTConfig) -> int:
    """Number of weights, each counted once."""
    return sum(map(math.prod, weight_shapes(config).values()))


def n_trained(setup: Setup) -> int:
    """Number of weights that are trained: all, or those that LoRA adds."""
    return sum(map(math.prod, _trained(setup).values()))


def _trained(setup: Setup) -> Shapes:
    return setup.lora.shapes(setup.model) if setup.lora else weight_shapes(setup.model)
