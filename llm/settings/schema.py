"""The shape of every configuration: its keys, their types, and which values go together.

The sections are the option classes of the rooms themselves; here they only gain the ``_target_``
that a YAML file names. Hydra checks keys and types against them, ``check()`` the rest, before
anything is built.
"""

from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

from llm.data.config import DataConfig, padded
from llm.disk import check_name, check_path
from llm.errors import require
from llm.memory.options import EIGHT_BIT_NEEDS, MemoryOptions, has_eight_bit
from llm.model.config import GPTConfig
from llm.sampling.options import SamplingOptions
from llm.settings.own import NOT_BUILT, Own, check_targets, state_bits
from llm.settings.plan_sections import FinetuneSection, PlanMemory
from llm.settings.values import check_numbers
from llm.training.options import TrainerOptions
from llm.training.schedule import Schedule

MOST_SAMPLES = 1 << 16  # which are drawn together
NO_KEY = "not a key"  # in the metadata of a field that no configuration has
MOST_TAGS = 100  # of a run; config.yaml, which holds them, must be readable again


@dataclass
class Model(GPTConfig):
    """``model/``"""

    _target_: str = "llm.model.gpt.GPT"
    head_size: int | None = None  # None: n_embed / n_head
    # A preset sets this and leaves n_head and head_size null, so that n_embed can be changed alone,
    # and a given n_head means heads of n_embed / n_head. The network itself does not take it.
    default_head_size: int = field(default=32, metadata={NOT_BUILT: True})

    def settle(self) -> None:
        """Fill in ``head_size`` where neither it nor ``n_head`` is given."""
        if self.n_head is None and self.head_size is None:
            self.head_size = self.default_head_size

    def resolve(self, vocab_size: int | None = None) -> GPTConfig:
        """The same shape with every ``None`` replaced by its number: see :class:`GPTConfig`."""
        settled = replace(self)
        settled.settle()
        return super(Model, settled).resolve(vocab_size)


@dataclass
class Optimizer:
    """``optimizer/``"""

    _target_: str = "llm.training.optimizer.adamw"
    name: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    state_bits: int = 32

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value out of its range."""
        require(0 < self.lr < inf, f"optimizer.lr={self.lr} must be more than 0 and finite")
        require(
            self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must be 0 or more"
        )
        betas = self.betas
        right = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        require(right, f"optimizer.betas={betas} must be two numbers in [0, 1)")
        bits = self.state_bits
        require(bits in (8, 32), f"optimizer.state_bits={bits} is unknown: take 8 or 32")


@dataclass
class MuonOptimizer(Optimizer):
    """``optimizer/muon``"""

    _target_: str = "llm.training.optimizer.muon"
    name: str = "muon"
    momentum: float = 0.9
    ns_steps: int = 5
    embed_lr_ratio: float = 0.5
    head_lr_ratio: float = 64.0
    vector_lr_ratio: float = 1.5

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value out of its range."""
        super().check()
        require(0 <= self.momentum < 1, f"optimizer.momentum={self.momentum} must be in [0, 1)")
        require(
            1 <= self.ns_steps <= 20, f"optimizer.ns_steps={self.ns_steps} must be between 1 and 20"
        )
        for key in ("embed_lr_ratio", "head_lr_ratio", "vector_lr_ratio"):
            value = getattr(self, key)
            require(0 <= value < inf, f"optimizer.{key}={value} must be 0 or more and finite")


@dataclass
class ScheduleSection(Schedule):
    """``schedule/``"""

    _target_: str = "llm.training.schedule.Cosine"


@dataclass
class PrecisionSection:
    """``precision/``"""

    name: str = "auto"


@dataclass
class Trainer(TrainerOptions):
    """``trainer/``"""

    _target_: str = "llm.training.trainer.Trainer"


@dataclass
class LoggerSection:
    """``logger/``"""

    mode: str = "offline"
    project: str = "llm"
    entity: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` for what W&B would not take."""
        allowed = self.project and not set(self.project) & set("/\\#?%:")
        require(allowed, f"logger.project={self.project} must be a name without / \\ # ? % :")
        wrong = [tag for tag in self.tags if not 1 <= len(tag) <= 64]
        require(not wrong, f"logger.tags={self.tags}: each must have 1 to 64 characters")
        count = len(self.tags)
        require(count <= MOST_TAGS, f"logger.tags has {count} tags: give at most {MOST_TAGS}")
        known = ("online", "offline", "disabled")
        require(
            self.mode in known,
            f"logger.mode={self.mode} is unknown: take one of {', '.join(known)}",
        )


@dataclass
class RunSection:
    """Where a run is written. A sweep gives each job its ``dir`` and its own name as ``sweep``."""

    name: str | None = None  # outputs/<name>; the same command again then continues it
    dir: str | None = None  # any folder
    sweep: str | None = None  # multirun/<sweep>

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` for a name that is no plain folder name."""
        for key in ("name", "sweep"):
            value = getattr(self, key)
            if value is not None:
                setattr(self, key, check_name(f"run.{key}", value))
        require(
            self.name is None or self.dir is None, "run.name and run.dir are both given: take one"
        )
        require(self.dir != "", "run.dir is empty: give a folder, or leave it out")
        check_path("run.dir", self.dir or "")


@dataclass
class TrainSettings:
    """Everything ``run_train.py`` is told."""

    model: Model = field(default_factory=Model)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: Optimizer | Own = field(default_factory=Optimizer)
    schedule: ScheduleSection | Own = field(default_factory=ScheduleSection)
    precision: PrecisionSection = field(default_factory=PrecisionSection)
    trainer: Trainer = field(default_factory=Trainer)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    logger: LoggerSection | Own = field(default_factory=LoggerSection)
    run: RunSection = field(default_factory=RunSection)
    seed: int = 1337
    init_from: str | None = None
    resume: str | None = None
    verify: bool = False
    # The keys on the command line of this start.
    typed: frozenset[str] = field(
        default=frozenset(), compare=False, repr=False, metadata={NO_KEY: True}
    )

    def resolve(self, vocab_size: int, precision: str) -> "TrainSettings":
        """These settings with every open value filled in: the numbers that the run really uses.

        ``vocab_size`` is the tokenizer's. For BPE the network's is padded to a multiple of 64, as
        matrix products are faster then (nanoGPT, commit 77e7e04).
        """
        tokens, schedule = vocab_size, self.schedule
        if isinstance(schedule, ScheduleSection):
            warmup = schedule.warmup(self.trainer.max_steps)
            schedule = replace(schedule, warmup_steps=warmup)
        shape = self.model.resolve(padded(vocab_size, self.data.tokenizer))
        return replace(
            self,
            model=Model(**asdict(shape)),
            precision=replace(self.precision, name=precision),
            trainer=replace(self.trainer, micro_batch_size=self.trainer.micro_batch),
            data=replace(self.data, vocab_size=tokens),
            schedule=schedule,
        )

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first values that cannot work."""
        for key in ("init_from", "resume"):
            require(getattr(self, key) != "", f"{key} is empty: give a run folder, or leave it out")
        require(self.resume or not self.verify, "verify=true needs a run folder: add resume=FOLDER")
        for section in (
            self.data, self.optimizer, self.trainer, self.memory, self.logger, self.run,
        ):  # fmt: skip
            section.check()
        check_targets(self)
        self.check_installed()
        self.model.resolve(self.data.declared_vocab_size())
        known = ("auto", "fp32", "bf16", "fp16", "bf16_weights")
        require(
            self.precision.name in known,
            f"precision.name={self.precision.name}: take one of {', '.join(known)}",
        )
        if isinstance(self.schedule, ScheduleSection):
            self.schedule.check(self.trainer.max_steps)
        check_numbers(self)
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be between 0 and 2^63")
        data, model = self.data.declared_vocab_size(), self.model.vocab_size
        require(
            not (data and model) or data <= model,
            f"model.vocab_size={model} is smaller than data.vocab_size={data}",
        )

    def check_installed(self) -> None:
        """Raise :class:`llm.errors.Refused` naming a library that is asked for and not there."""
        needed = state_bits(self.optimizer) == 8 and not self.verify
        require(not needed or has_eight_bit(), EIGHT_BIT_NEEDS)


@dataclass
class PlanSettings(TrainSettings):
    """Everything ``run_plan.py`` is told."""

    memory: PlanMemory = field(default_factory=PlanMemory)
    finetune: FinetuneSection = field(default_factory=FinetuneSection)
    picture: str | None = None  # a PNG

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first values that cannot work."""
        super().check()
        self.finetune.check()
        named = self.picture is None or self.picture.lower().endswith(".png")
        require(named, f"picture={self.picture} must be the name of a PNG, as in picture=plan.png")
        check_path("picture", self.picture or "")

    def check_installed(self) -> None:
        """A plan needs no library."""


@dataclass
class SampleSettings(SamplingOptions):
    """Everything ``run_sample.py`` is told."""

    ckpt: str | None = None
    prompt: str = ""
    prompt_file: str | None = None
    num_samples: int = 1
    stop: Any = None  # a text or a list of them; OmegaConf has no type for that
    seed: int = 1337
    device: str = "auto"
    stream: bool = True
    logprobs: bool = False
    echo: bool = True
    verify_cache: bool = False
    benchmark: bool = False

    def stops(self) -> list[str]:
        """The stop strings."""
        if self.stop is None:
            return []
        return self.stop if isinstance(self.stop, list) else [self.stop]

    def seeds(self) -> list[int]:
        """One for each sample."""
        return [self.seed + number for number in range(self.num_samples)]

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value that cannot work."""
        require(
            self.ckpt,
            "ckpt is missing: give a run folder or a checkpoint, as in ckpt=outputs/<date>/<time>",
        )
        count = self.num_samples
        require(count >= 1, f"num_samples={count} must be at least 1")
        require(count <= MOST_SAMPLES, f"num_samples={count} is more than {MOST_SAMPLES}")
        require(
            not (self.prompt and self.prompt_file),
            "prompt and prompt_file are both given: take one",
        )
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be between 0 and 2^63")
        for stop in self.stops():
            require(isinstance(stop, str), f"stop={stop!r} must be text")
            require(stop, "stop is empty: give some text, or leave it out")
            # Bytes of the command line that are not UTF-8 come as surrogates (PEP 383).
            require(not any("\ud800" <= c <= "\udfff" for c in stop), "stop is not UTF-8")
        super().check()
        check_numbers(self)


@dataclass
class PrepareSettings:
    """Everything ``run_prepare.py`` is told."""

    data: DataConfig = field(default_factory=DataConfig)

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value that cannot work."""
        self.data.check()
        check_numbers(self)


SETTINGS = {
    "train": TrainSettings, "sample": SampleSettings, "prepare": PrepareSettings,
    "plan": PlanSettings,
}  # fmt: skip
