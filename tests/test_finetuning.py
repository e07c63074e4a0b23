"""Runs that train adapters or a part of a network: checkpoints, resuming and their bases."""

import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from llm.checkpoint.checkpoint import Checkpoint
from llm.errors import Refused
from llm.experiment.loggers import RunLogger
from llm.experiment.rundir import read_summary
from llm.interchange.adapters import open_adapter, with_adapter
from llm.interchange.source import CheckpointSource, introduction, load_model, open_source
from llm.model.gpt import GPT
from llm.model.lora import adapt
from llm.sampling.layout import lay_out_for_decoding
from llm.sealed import opened, read_json, sealed
from tests.command_line import here, rows
from tests.conftest import ROOT, TINY_RUN, entered
from tests.interchange.test_hf_writing import loaded
from tests.test_bad_input import CHAR, assert_refused

RUN = [word for word in TINY_RUN if not word.startswith("model.")]
DATA = [*CHAR, "data.path=play.txt"]
FROM = "init_from=outputs/base"
# Dropout draws from the generator whose state a checkpoint has to restore.
TUNED = [*DATA, *RUN, FROM, "finetune=lora", "finetune.rank=2", "finetune.dropout=0.2"]
CPU = torch.device("cpu")
CONVERSATION = '{"instruction": "Who are you?", "output": "A small network."}\n'


def train(cwd: Path, *typed: str) -> None:
    done = here("train", *typed, cwd=cwd)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder with a base and two adapters for it."""
    path = tmp_path_factory.mktemp("tuned")
    shutil.copy(text_file, path / "play.txt")
    train(path, *DATA, *TINY_RUN, "run.name=base")
    train(path, *TUNED, "run.name=lora")
    train(path, *DATA, *RUN, FROM, "finetune=dora", "finetune.targets=[q,down]", "run.name=dora")
    return path


@pytest.fixture
def cwd(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which a test runs."""
    return entered(trained, tmp_path, monkeypatch)


def source(run: str) -> CheckpointSource:
    opened = open_source("ckpt", f"outputs/{run}")
    assert isinstance(opened, CheckpointSource)
    return opened


def logits(model: GPT) -> Tensor:
    with torch.no_grad():
        tokens = torch.arange(16)[None]
        out: Tensor = model(tokens)
        return out


def weights_of(run: str, name: str = "last") -> dict[str, Tensor]:
    return load_file(f"outputs/{run}/checkpoints/{name}/model.safetensors")


@pytest.mark.usefixtures("cwd")
def test_a_checkpoint_holds_the_adapters_and_names_their_base() -> None:
    names = {f"blocks.0.attention.{m}.lora_{n}" for m in "qkvo" for n in "AB"}
    names |= {f"blocks.0.mlp.{m}.lora_{n}" for m in ("gate", "up", "down") for n in "AB"}
    for name in ("last", "best"):
        assert weights_of("lora", name).keys() == names
    checkpoint = Checkpoint.open(Path("outputs/lora/checkpoints/last"))
    assert checkpoint.finetune is not None and checkpoint.finetune.rank == 2
    assert checkpoint.base is not None and checkpoint.base.init_from == "outputs/base"
    assert checkpoint.base.digest == source("base").digest() != source("lora").digest()
    assert not any("weight" in key for key in checkpoint.training())
    base = Checkpoint.open(Path("outputs/base/checkpoints/last"))
    assert base.finetune is base.base is None
    with pytest.raises(Refused, match="has no weights of its own"):
        checkpoint.load_model(CPU)


@pytest.mark.usefixtures("cwd")
def test_the_base_is_evaluated_before_the_first_step_and_training_lowers_its_loss() -> None:
    for name in ("lora", "dora"):
        rows = Path(f"outputs/{name}/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert '"step": 0' in rows[0] and '"val/loss"' in rows[0]
        tuned, base = (read_summary(Path(f"outputs/{one}")) or {} for one in (name, "base"))
        assert tuned["best_val_loss"] < base["best_val_loss"]


def test_the_parameters_are_those_of_the_network_without_adapters_everywhere(cwd: Path) -> None:
    typed = [*DATA, *RUN, FROM, "finetune=qlora", "finetune.rank=99", "trainer.max_steps=1"]
    done = here("train", *typed, "run.name=qlora", cwd=cwd)
    plan = here("plan", *typed, "json=true", cwd=cwd)
    planned = json.loads(plan.stdout.splitlines()[-1])["points"][0]["parameters"]
    runs = ("base", "lora", "dora", "qlora")
    found = {(read_summary(Path(f"outputs/{run}")) or {})["parameters"] for run in runs}
    assert found == {planned} == {sum(w.numel() for w in weights_of("base").values())}
    screen = " ".join(done.stdout.split())
    assert f"{planned:,} parameters: 1 layer" in screen
    assert (trained := sum(w.numel() for w in weights_of("qlora").values())) > planned
    assert f"trained {trained:,} parameters, of the adapters" in screen


@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.usefixtures("cwd")
def test_a_loaded_network_is_the_base_with_its_adapters_merged(name: str) -> None:
    checkpoint = Checkpoint.open(source(name).path)
    assert checkpoint.finetune is not None
    model = adapt(load_model(source("base"), CPU), checkpoint.finetune)
    checkpoint.load_into(model)
    merged = load_model(source(name), CPU)
    assert float((logits(merged) - logits(model)).abs().max()) <= 1e-5
    assert not torch.equal(logits(merged), logits(load_model(source("base"), CPU)))


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_an_export_of_adapters_is_the_base_with_them_merged(name: str, cwd: Path) -> None:
    done = here("export", f"outputs/{name}", "out=hf", cwd=cwd)
    assert done.returncode == 0, done.stderr
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        exported = loaded(cwd / "hf")(tokens).logits
    assert float((exported - logits(load_model(source(name), CPU))).abs().max()) <= 1e-5
    assert float((exported - logits(load_model(source("base"), CPU))).abs().max()) > 1e-4


def test_a_continued_run_has_the_same_adapters_to_the_bit(cwd: Path) -> None:
    run = cwd / "outputs/cut"
    shutil.copytree(cwd / "outputs/lora", run, symlinks=True)
    for later in ("step-00000006", "last", "best", "best-00000006"):
        path = run / "checkpoints" / later
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    (run / "summary.json").unlink()
    assert Checkpoint.open(run / "checkpoints/step-00000004").step == 4
    train(cwd, "resume=outputs/cut")
    for file in ("model.safetensors", "training.safetensors"):
        paths = [cwd / f"outputs/{one}/checkpoints/last/{file}" for one in ("cut", "lora")]
        assert paths[0].read_bytes() == paths[1].read_bytes(), file


def test_data_in_the_tokens_of_a_base_leads_to_a_run_from_that_base(cwd: Path) -> None:
    done = here("prepare", "data=text", "data.path=play.txt", "data.tokenizer=outputs/base",
                cwd=cwd)  # fmt: skip
    command = shlex.split(done.stdout.partition("\nnext: ")[2])
    train(cwd, *command[2:], *RUN, "run.name=next")
    assert Checkpoint.open(source("next").path).base is not None
    usual = here("prepare", *DATA, cwd=cwd).stdout
    assert "init_from" not in usual.partition("\nnext: ")[2] != ""
    (cwd / "mine.jsonl").write_text(CONVERSATION, encoding="utf-8")
    chat = here("prepare", "data=chat", "data.path=mine.jsonl", cwd=cwd)
    assert_refused(chat, "take data.tokenizer=smollm2 (or other weights that you will fine-tune;")
    typed = ["data=chat", "data.path=mine.jsonl", "data.tokenizer=outputs/base"]
    assert_refused(here("prepare", *typed, cwd=cwd), "special tokens: train anew with data.tokeni")


def test_an_adapter_for_another_base_is_refused(cwd: Path) -> None:
    shutil.move("outputs/base", "outputs/kept")
    resumed = ["resume=outputs/lora", "trainer.max_steps=8"]
    for command in (["sample", "ckpt=outputs/lora"], ["train", *resumed]):
        said = "cannot be opened: init_from=outputs/base does not exist"
        assert_refused(here(*command, cwd=cwd), ": the base of outputs/lora/checkpoints/", said)
    train(cwd, *DATA, *TINY_RUN, "run.name=base", "seed=2")
    another = "is an adapter for another base: it needs the weights that outputs/base had"
    assert_refused(here("sample", "ckpt=outputs/lora", cwd=cwd), another)
    assert_refused(here("train", *resumed, cwd=cwd), another)
    train(cwd, *resumed, "init_from=outputs/kept")  # the same weights in another place


def test_adapters_find_their_base_after_its_run_was_continued(cwd: Path) -> None:
    before = logits(load_model(source("lora"), CPU))
    train(cwd, "resume=outputs/base", "trainer.max_steps=9", "trainer.keep_last=9")
    base = Checkpoint.open(source("lora").path).base
    assert base is not None and source("base").digest() != base.digest, "another one is best"
    assert torch.equal(logits(load_model(source("lora"), CPU)), before)
    train(cwd, "resume=outputs/lora", "trainer.max_steps=7")
    assert Checkpoint.open(Path("outputs/lora/checkpoints/last")).base == base
    shutil.rmtree("outputs/base/checkpoints/step-00000006")
    assert_refused(here("sample", "ckpt=outputs/lora", cwd=cwd), "is an adapter for another base")


def test_the_same_command_again_is_the_same_run(cwd: Path) -> None:
    again = here("train", *TUNED, "run.name=lora", cwd=cwd)
    assert (again.returncode, "already" in again.stdout) == (0, True)
    other = here("train", *TUNED, "finetune.alpha=6", "run.name=lora", cwd=cwd)
    assert_refused(other, "finetune.alpha was 8.0, now 6.0")


@pytest.mark.parametrize("method", ["qlora", "head"])
def test_evaluation_alone_gives_the_loss_of_the_run_to_the_bit(method: str, cwd: Path) -> None:
    words = [f"finetune={method}", "precision=bf16_weights", "optimizer.lr=0.02", "run.name=part"]
    train(cwd, *DATA, *RUN, FROM, *words, "trainer.max_steps=2")
    done = here("train", "resume=outputs/part", "trainer.eval_only=true", "json=true", cwd=cwd)
    assert done.returncode == 0, done.stderr
    expected, found = read_summary(cwd / "outputs/part"), json.loads(done.stdout.splitlines()[-1])
    assert expected
    assert found["val_loss"] == expected["best_val_loss"]
    assert found["step"] > 0
    merged = here("eval", "outputs/part", "as_in_training=true", "json=true", cwd=cwd)
    loss = json.loads(merged.stdout)["runs"][0]["tasks"]["loss"]["loss"]
    assert loss == pytest.approx(expected["best_val_loss"], abs=1e-3 if method == "qlora" else 0)


def test_adapters_can_be_trained_on_merged_adapters(cwd: Path) -> None:
    words = [*DATA, *RUN, "init_from=outputs/lora", "finetune=lora", "run.name=second"]
    train(cwd, *words, "optimizer.lr=1e-9")
    torch.testing.assert_close(
        logits(load_model(source("second"), CPU)), logits(load_model(source("lora"), CPU))
    )
    assert here("sample", "ckpt=outputs/second", "max_new_tokens=4", cwd=cwd).returncode == 0


MATRICES = [f"blocks.0.attention.{one}" for one in "qkvo"]
MATRICES += [f"blocks.0.mlp.{one}" for one in ("gate", "up", "down")]
ADAPTED = {f"{one}.weight" for one in MATRICES}
ADAPTERS = {f"{one}.lora_{name}" for one in MATRICES for name in "AB"}
HEAD = {"embed.weight", "norm.weight"}  # the head is tied to the embedding
WHOLE = ADAPTED | HEAD | {f"blocks.0.{one}_norm.weight" for one in ("attention", "mlp")}
FROZEN = {one for one in WHOLE if one.startswith(("embed", "blocks.0.mlp."))}
# Each option of conf/finetune: what its checkpoint holds, and the weights that differ afterwards.
OPTIONS = {
    "none": (WHOLE, WHOLE),
    "full": (WHOLE, WHOLE),
    "full finetune.freeze=[embed,blocks.0.mlp]": (WHOLE - FROZEN, WHOLE - FROZEN),
    "head": (HEAD, HEAD),
    "lora": (ADAPTERS, ADAPTED),
    "dora": (ADAPTERS | {f"{one}.magnitude" for one in MATRICES}, ADAPTED),
    "qlora": (ADAPTERS, ADAPTED),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_trains_and_saves_its_part_and_leaves_the_rest(option: str, cwd: Path) -> None:
    held, changed = OPTIONS[option]
    few = ["run.name=part", "trainer.max_steps=2"]
    train(cwd, *DATA, *RUN, FROM, *f"finetune={option}".split(), *few)
    assert weights_of("part").keys() == held
    base, whole = source("base").weights(), load_model(source("part"), CPU).state_dict()
    assert {name for name in base if not torch.equal(whole[name], base[name])} == changed
    first = rows(cwd / "outputs/part")[0]["val/loss"]
    settings = yaml.safe_load(Path("outputs/part/config.yaml").read_text(encoding="utf-8"))
    name, bits = option.split()[0], 4 if option == "qlora" else None
    assert (settings["finetune"]["name"], settings["finetune"]["bits"]) == (name, bits)
    assert settings["optimizer"]["name"] == ("muon" if name == "none" else "adamw")
    before = (read_summary(cwd / "outputs/base") or {})["best_val_loss"]
    is_rounded = abs(first - before) > 1e-6
    assert is_rounded == (bits is not None) and first == pytest.approx(before, abs=0.1)


def test_every_file_of_the_group_is_tested() -> None:
    files = {path.stem for path in (ROOT / "conf/finetune").glob("*.yaml")}
    assert files == {option.split()[0] for option in OPTIONS}


def test_all_weights_can_be_fine_tuned_into_a_complete_checkpoint(cwd: Path) -> None:
    train(cwd, *DATA, *RUN, FROM, "finetune=full", "run.name=full", "trainer.max_steps=2")
    checkpoint = Checkpoint.open(source("full").path)
    assert checkpoint.base is None
    shutil.rmtree("outputs/base")
    assert checkpoint.load_model(CPU)


def test_a_base_is_not_overwritten_and_a_complete_checkpoint_continues_without_it(
    cwd: Path,
) -> None:
    assert here("export", "outputs/base", "out=hf", cwd=cwd).returncode == 0
    typed = [*DATA, *RUN, "init_from=hf", "data.tokenizer=null"]
    train(cwd, *typed, "finetune=lora", "run.name=adapters")
    done = here("export", "outputs/adapters", "out=hf", "overwrite=true", cwd=cwd)
    assert_refused(done, "out=hf holds the weights that are exported")
    train(cwd, *typed, "finetune=full", "run.name=full")
    shutil.rmtree(cwd / "hf")
    train(cwd, "resume=outputs/full", "trainer.max_steps=7")
    assert (read_summary(cwd / "outputs/full") or {})["step"] == 7


@pytest.mark.usefixtures("cwd")
def test_several_adapters_share_one_base_that_stays_as_it_is() -> None:
    base = load_model(source("base"), CPU)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    for name in ("lora", "dora", "lora"):
        model = with_adapter(base, open_adapter("adapters", f"outputs/{name}", source("base")))
        assert model.embed.weight.data_ptr() == base.embed.weight.data_ptr()
        lay_out_for_decoding(model)
        torch.testing.assert_close(logits(model), logits(load_model(source(name), CPU)))
    after = base.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


SAMPLED = ["outputs/base", "prompt=SPEAKER", "max_new_tokens=5", "temperature=0"]


def test_samples_of_each_adapter_have_its_name_and_are_its_own(cwd: Path) -> None:
    done = here("export", "outputs/dora", "format=peft", "out=peft", cwd=cwd)
    assert done.returncode == 0, done.stderr
    places = ["outputs/lora", "peft", "outputs/dora/checkpoints/last"]
    adapters = f"adapters=[{','.join(places)}]"
    done = here("sample", *SAMPLED, adapters, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^=== (.*) ===\nSPEAKER", done.stdout, flags=re.MULTILINE) == places
    names = ["best-00000006 of outputs/base", "step-00000006 of outputs/dora"]
    introduced = done.stderr.splitlines()
    assert (introduced[0], introduced[3], len(introduced)) == (*names, 4)

    def samples(*typed: str) -> Any:
        done = here("sample", *typed, *SAMPLED[1:], "num_samples=2", "logprobs=true", "json=true",
                    cwd=cwd)  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])["samples"]

    alone = {place: samples(place) for place in places}
    assert alone["outputs/lora"] != alone["peft"]
    expected = [{"adapter": place} | one for place in places for one in alone[place]]
    assert samples(SAMPLED[0], adapters) == expected


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("outputs/base", "outputs/base/checkpoints/best holds a whole network, not an adapter"),
        (
            "[outputs/lora,outputs/second]",
            "outputs/second/checkpoints/best is an adapter for another",
        ),
        (
            "[outputs/lora,second_peft]",
            "second_peft is an adapter for another base: it was trained",
        ),
        ("[outputs/gone]", "adapters=outputs/gone does not exist"),
        ("[outputs/lora,outputs/lora]", "adapters names outputs/lora twice"),
        ("[1]", "adapters=1 must be a path: put it between quotes"),
    ],
)
def test_adapters_of_another_base_are_refused(adapters: str, message: str, cwd: Path) -> None:
    if "second" in adapters:
        words = ["init_from=outputs/lora", "finetune=lora", "run.name=second"]
        train(cwd, *DATA, *RUN, *words, "trainer.max_steps=2")
        done = here("export", "outputs/second", "format=peft", "out=second_peft", cwd=cwd)
        assert done.returncode == 0, done.stderr
    assert_refused(here("sample", *SAMPLED, f"adapters={adapters}", cwd=cwd), message)


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"base": None}, "has finetune and base that do not fit each other"),
    ({"finetune": None}, "has finetune and base that do not fit each other"),
    ({"finetune": {"name": "none"}}, "has finetune and base that do not fit each other"),
    ({"finetune": {"name": "lora", "rank": 10**9}}, "rank=1000000000 must be at least 1 and"),
    ({"finetune": {"name": "lora", "rank": 4}}, "this model needs"),
    ({"finetune": {"name": "lora", "rank": 2, "targets": ["q"]}}, "that this model lacks"),
    ({"finetune": {"name": "lora", "targets": {"q": 1}}}, "finetune.targets={'q': 1} must be"),
    ({"base": {"init_from": 3, "digest": "d"}}, "init_from=3 must be text"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE)
def test_a_manifest_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str, cwd: Path
) -> None:
    path = cwd / "outputs/lora/checkpoints/best/checkpoint.json"
    values = opened(read_json(path), path) | changes
    path.write_text(sealed(values), encoding="utf-8")
    assert_refused(here("sample", "ckpt=outputs/lora", cwd=cwd), message)


def test_a_run_that_was_interrupted_before_an_evaluation_means_its_last_checkpoint(
    cwd: Path,
) -> None:
    """``best`` is from before training then, so its adapters change nothing."""
    tick = RunLogger.tick

    def stopped_after_4(self: RunLogger, step: int) -> None:
        tick(self, step)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with patch.object(RunLogger, "tick", stopped_after_4):
        rare = ["trainer.eval_interval=100", "trainer.patience=9", "run.name=short"]
        assert here("train", *TUNED, *rare, cwd=cwd).returncode == 75
    why = "best-00000000 of outputs/short is from before training, and no later step was evaluated"
    said = ["step-00000004 of outputs/short", why]
    done = here("export", "outputs/short", "format=peft", "out=short", "json=true", cwd=cwd)
    assert done.stderr.splitlines()[:2] == said
    assert json.loads(done.stdout)["checkpoint"] == "outputs/short/checkpoints/step-00000004"
    written = load_file(cwd / "short" / "adapter_model.safetensors")
    assert all(written[name].any() for name in written if "lora_B" in name)
    for command, *typed in (["sample", "max_new_tokens=1"], ["eval"]):
        assert here(command, "ckpt=outputs/short", *typed, cwd=cwd).stderr.splitlines()[:2] == said

    # Evaluated, and worse than before training: the best one stays, with a warning.
    train(cwd, *TUNED, "optimizer.lr=9", "schedule.warmup_steps=0", "run.name=worse")
    for place in ("outputs/worse", "outputs/worse/checkpoints", "outputs/worse/checkpoints/best"):
        first, warning = introduction(open_source("ckpt", place))
        assert first == "best-00000000 of outputs/worse"
        assert warning.startswith("these weights are from before training")
        assert warning.endswith("outputs/worse/checkpoints/last has those of step 6")
    last = introduction(open_source("ckpt", "outputs/worse/checkpoints/last"))
    assert last == ["step-00000006 of outputs/worse"]

    # Training from these runs shows the same.
    warnings = {"short": why, "worse": "these weights are from before training, because no"}
    for run, name in (("short", said[0]), ("worse", "best-00000000 of outputs/worse")):
        few = [f"init_from=outputs/{run}", "finetune=lora", "trainer.max_steps=1"]
        done = here("train", *DATA, *RUN, *few, "run.name=next", "run.retry=all", cwd=cwd)
        screen = " ".join(done.stdout.split())
        assert f"init_from {name} " in screen and f"warning: {warnings[run]}" in screen
    assert f"init_from {name} " in " ".join(
        here("train", "resume=outputs/next", "trainer.max_steps=2", cwd=cwd).stdout.split()
    )


@pytest.mark.slow  # it compiles for half a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's own, of its own parts
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo looks at all tensors
def test_a_compiled_run_of_qlora_with_the_chunked_loss_learns_the_same(cwd: Path) -> None:
    typed = [*DATA, *RUN, FROM, "finetune=qlora", "model.loss=chunked"]
    train(cwd, *typed, "run.name=plain")
    train(cwd, *typed, "trainer.compile=true", "run.name=compiled")
    plain, compiled = (
        [row["train/loss"] for row in rows(Path("outputs") / run) if "train/loss" in row]
        for run in ("plain", "compiled")
    )
    assert len(compiled) == 6
    assert compiled == pytest.approx(plain, abs=1e-5)
