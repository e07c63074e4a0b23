"""All settings of each command: keys, types, bounds, and rules between several values.

Most sections are option classes of other packages, plus the ``_target_`` that a YAML file names.
Before anything is built, Hydra checks keys and types, and :func:`llm.options.validate` checks
bounds and rules. The same defaults are in ``conf/``, with a comment for each key.
"""

from dataclasses import asdict, dataclass, field, replace

from llm.data.config import DataConfig, padded
from llm.disk import check_name, check_path
from llm.errors import require
from llm.memory.options import EIGHT_BIT_NEEDS, SIZES, MemoryOptions, has_eight_bit
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions
from llm.options import check_length, option
from llm.settings.custom import Custom, check_targets, state_bits
from llm.settings.eval import EvalSettings
from llm.settings.export import ExportSettings
from llm.settings.report import ReportSettings
from llm.settings.sample import SampleSettings
from llm.training.options import TrainerOptions
from llm.training.schedule import Schedule

RETRIES = ("failed", "all", "none")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "bf16_weights")
NO_KEY = "not a key"  # in the metadata of a field that is not a key of the configuration
MOST_TAGS, LONGEST_NOTES = 100, 10_000  # load_plain refuses a config.yaml that is too large


@dataclass
class Model(GPTConfig):
    """``model/``"""

    _target_: str = "llm.model.gpt.GPT"
    head_size: int | None = option(None, at_least=1, at_most=16_384)  # None: n_embed / n_head
    # A preset gives this instead of n_head and head_size, so that n_embed can be changed alone and
    # n_head=6 makes heads of n_embed / 6. It is not an argument of the network.
    default_head_size: int = option(32, at_least=1, at_most=16_384)

    def settle(self) -> None:
        """Set ``head_size`` to its default if neither it nor ``n_head`` is given."""
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
    lr: float = option(2e-3, more_than=0)
    weight_decay: float = option(0.1, at_least=0)
    betas: list[float] = option([0.9, 0.95], at_least=0, less_than=1)
    state_bits: int = option(32, one_of=(8, 32))

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` unless there are two betas."""
        require(len(self.betas) == 2, f"optimizer.betas={self.betas} must be two numbers")


@dataclass
class MuonOptimizer(Optimizer):
    """``optimizer/muon``"""

    _target_: str = "llm.training.optimizer.muon"
    name: str = "muon"
    lr: float = option(0.02, more_than=0)
    weight_decay: float = option(0.0, at_least=0)
    betas: list[float] = option([0.8, 0.95], at_least=0, less_than=1)
    momentum: float = option(0.9, at_least=0, less_than=1)
    ns_steps: int = option(5, at_least=1, at_most=20)
    embed_lr_ratio: float = option(0.5, at_least=0)
    head_lr_ratio: float = option(64.0, at_least=0)
    vector_lr_ratio: float = option(1.5, at_least=0)


@dataclass
class ScheduleSection(Schedule):
    """``schedule/``"""

    _target_: str = "llm.training.schedule.Cosine"


@dataclass
class PrecisionSection:
    """``precision/``"""

    name: str = option("auto", one_of=PRECISIONS)


@dataclass
class Trainer(TrainerOptions):
    """``trainer/``"""

    _target_: str = "llm.training.trainer.Trainer"


@dataclass
class LoggerSection:
    """``logger/``"""

    mode: str = option("offline", one_of=("online", "offline", "disabled"))
    project: str = "llm"
    entity: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` for values that W&B would reject."""
        allowed = self.project and not set(self.project) & set("/\\#?%:")
        require(allowed, f"logger.project={self.project} must be a name without / \\ # ? % :")
        wrong = [tag for tag in self.tags if not 1 <= len(tag) <= 64]
        require(not wrong, f"logger.tags={self.tags}: each must have 1 to 64 characters")
        count = len(self.tags)
        require(count <= MOST_TAGS, f"logger.tags has {count} tags: give at most {MOST_TAGS}")
        check_length("logger.notes", self.notes, LONGEST_NOTES)


@dataclass
class RunSection:
    """``run``; a sweep sets ``dir`` and ``sweep`` (its name) for each job."""

    name: str | None = None
    dir: str | None = None
    sweep: str | None = None
    note: str | None = None
    dry_run: bool = False
    retry: str = option("failed", one_of=RETRIES)

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` for a name that no folder can have."""
        for key in ("name", "sweep"):
            value = getattr(self, key)
            if value is not None:
                setattr(self, key, check_name(f"run.{key}", value))
        require(
            self.name is None or self.dir is None, "run.name and run.dir are both given: take one"
        )
        require(self.dir != "", "run.dir is empty: give a folder, or leave it out")
        check_length("run.note", self.note, LONGEST_NOTES)
        check_path("run.dir", self.dir or "")


@dataclass
class TrainSettings:
    """All settings of ``run_train.py``."""

    model: Model = field(default_factory=Model)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: Optimizer | Custom = field(default_factory=Optimizer)
    schedule: ScheduleSection | Custom = field(default_factory=ScheduleSection)
    precision: PrecisionSection = field(default_factory=PrecisionSection)
    trainer: Trainer = field(default_factory=Trainer)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    logger: LoggerSection | Custom = field(default_factory=LoggerSection)
    run: RunSection = field(default_factory=RunSection)
    seed: int = option(1337, at_least=0)
    init_from: str | None = None
    resume: str | None = None
    verify: bool = False
    # The keys that were typed on the command line
    typed: frozenset[str] = field(
        default=frozenset(), compare=False, repr=False, metadata={NO_KEY: True}
    )

    def resolve(self, vocab_size: int, precision: str) -> "TrainSettings":
        """These settings with every null replaced by the value that the run uses; the warm-up of a
        run with a budget in minutes is decided while it trains.

        ``vocab_size`` is the tokenizer's; the network's may be padded (:func:`padded`).
        """
        schedule, max_steps = self.schedule, self.trainer.max_steps
        if isinstance(schedule, ScheduleSection) and max_steps is not None:
            warmup = schedule.warmup(max_steps)
            schedule = replace(schedule, warmup_steps=warmup)
        shape = self.model.resolve(padded(vocab_size, self.data.tokenizer))
        return replace(
            self,
            model=Model(**asdict(shape)),
            precision=replace(self.precision, name=precision),
            trainer=replace(self.trainer, micro_batch_size=self.trainer.micro_batch),
            data=replace(self.data, vocab_size=vocab_size),
            schedule=schedule,
        )

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first values that cannot work together."""
        for key in ("init_from", "resume"):
            require(getattr(self, key) != "", f"{key} is empty: give a run folder, or leave it out")
        require(self.resume or not self.verify, "verify=true needs a run folder: add resume=FOLDER")
        self.finetune.check_typed(self.typed)
        self.check_origin()
        check_targets(self)
        self.check_installed()
        self.model.resolve(self.data.declared_vocab_size())
        if isinstance(self.schedule, ScheduleSection):
            self.schedule.check(self.trainer.max_steps)
        data, model = self.data.declared_vocab_size(), self.model.vocab_size
        remedy = "set data.vocab_size=null" if self.init_from else "leave model.vocab_size out"
        require(
            not (data and model) or data <= model,
            f"model.vocab_size={model} is smaller than data.vocab_size={data}: {remedy}",
        )

    def check_origin(self) -> None:
        """Raise :class:`llm.errors.Refused` for fine-tuning without weights to start from."""
        name = self.finetune.name
        require(
            name == "none" or self.init_from or self.resume,
            f"finetune={name} needs trained weights: add init_from=FOLDER",
            key="init_from", suggestions=["init_from=FOLDER"],
        )  # fmt: skip

    def check_installed(self) -> None:
        """Raise :class:`llm.errors.Refused` naming a library that is needed and missing."""
        needed = state_bits(self.optimizer) == 8 and not self.verify
        require(not needed or has_eight_bit(), EIGHT_BIT_NEEDS)


@dataclass
class PlanMemory(MemoryOptions):
    """``memory/`` for ``run_plan.py``"""

    largest: str | None = None

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` unless ``largest`` names a size."""
        super().cross_check()
        self.largest = self.largest and self.largest.removeprefix("model.")
        require(
            self.largest is None or self.largest in SIZES,
            f"memory.largest={self.largest} must be one of {', '.join(SIZES)}",
        )


@dataclass
class PlanSettings(TrainSettings):
    """All settings of ``run_plan.py``."""

    memory: PlanMemory = field(default_factory=PlanMemory)
    picture: str | None = None

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first values that cannot work together."""
        super().cross_check()
        named = self.picture is None or self.picture.lower().endswith(".png")
        require(named, f"picture={self.picture} must be the name of a PNG, as in picture=plan.png")
        check_path("picture", self.picture or "")

    def check_origin(self) -> None:
        """A plan needs no weights."""

    def check_installed(self) -> None:
        """A plan needs no additional library."""


@dataclass
class PrepareSettings:
    """All settings of ``run_prepare.py``."""

    data: DataConfig = field(default_factory=DataConfig)


SETTINGS = {
    "train": TrainSettings, "sample": SampleSettings, "prepare": PrepareSettings,
    "plan": PlanSettings, "report": ReportSettings, "eval": EvalSettings, "export": ExportSettings,
}  # fmt: skip
