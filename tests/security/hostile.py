"""Hostile files: each case changes one thing in a good run, and corrects the digests if an attacker
could.
"""

import io
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llm.checkpoint.checkpoint import MANIFEST, TRAINING, WEIGHTS
from llm.model.config import GPTConfig
from tests.checkpoint.conftest import Edit, edit, edit_tensors, replace_file

SECRET = "a-secret-of-the-user"  # in the environment, as SECRET
CANARY = "canary.txt"  # an empty file in the folder where commands are typed
SAMPLE = {"sample"}  # ckpt=
FROM = SAMPLE | {"train"}  # and init_from=
MOST = SAMPLE | {"resume"}
ALL = FROM | MOST
STEP = "outputs/run/checkpoints/step-00000006"
Change = Callable[[Path], object]  # made in the folder where commands are typed


@dataclass(frozen=True)
class Case:
    """A change, and the commands that read the changed file."""

    name: str
    change: Change
    commands: set[str]
    path: str = STEP  # after ckpt= and init_from=


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo executed >> {CANARY}",)


def pickled() -> bytes:
    return pickle.dumps({"model": Payload()})


def torch_file() -> bytes:
    raw = io.BytesIO()
    torch.save({"model": Payload()}, raw)
    return raw.getvalue()


def manifest(change: Edit) -> Change:
    return lambda place: edit(place / STEP, change)


def model(**values: Any) -> Change:
    return manifest(lambda m: m["model"].update(values))


def state(**values: Any) -> Change:
    return manifest(lambda m: m["state"].update(values))


def file(name: str, raw: Callable[[], bytes]) -> Change:
    return lambda place: replace_file(place / STEP, name, raw())


def tensors(change: Edit, name: str = WEIGHTS) -> Change:
    return lambda place: edit_tensors(place / STEP, change, name)


def header(change: Edit) -> Change:
    """Change the header of the weights, and not their data."""

    def inner(place: Path) -> None:
        raw = (place / STEP / WEIGHTS).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        claims = json.loads(raw[8 : 8 + size])
        change(claims)
        text = json.dumps(claims).encode()
        data = raw[8 + size :]
        replace_file(place / STEP, WEIGHTS, len(text).to_bytes(8, "little") + text + data)

    return inner


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    """A file of any size that takes no room on the disk."""
    path.write_bytes(start)
    os.truncate(path, size)


def instead(name: str, make: Callable[[Path], object]) -> Change:
    """Something else in place of a file of the run; ``name`` is below ``outputs/run``."""

    def inner(place: Path) -> None:
        path = place / "outputs/run" / name
        path.unlink(missing_ok=True)
        make(path)

    return inner


def in_step(name: str, make: Callable[[Path], object]) -> Change:
    return instead(f"checkpoints/step-00000006/{name}", make)


def config(old: str, new: str) -> Change:
    """Replace some text in config.yaml."""

    def inner(place: Path) -> None:
        path = place / "outputs/run/config.yaml"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return inner


def added(text: str) -> Change:
    return config("seed:", f"{text}\nseed:")


def largest(place: Path) -> None:
    """The largest model that may be described; its file is as small as before."""
    shape = GPTConfig(
        n_layer=512, n_embed=16_384, head_size=128, n_head=128, n_kv_head=128,
        intermediate_size=65_536, vocab_size=1_048_576, block_size=1_048_576, bias=True,
        position="learned", qk_norm=True, norm="layernorm", tie_embeddings=False,
        residual_scalars=True, smear=64,
    )  # fmt: skip
    edit(place / STEP, lambda m: m.update(model=asdict(shape)))


def largest_and_huge(place: Path) -> None:
    largest(place)
    for name in (WEIGHTS, TRAINING):
        sparse(place / STEP / name, 1 << 40)


def larger_than_mine(place: Path) -> None:
    """A model that this machine could hold, but larger than the one to train."""
    edit(place / STEP, lambda m: m["model"].update(n_layer=512, n_embed=512))
    sparse(place / STEP / WEIGHTS, 6 << 30)


def checkpoints_as(target: str) -> Change:
    """A link in place of the run's ``checkpoints``."""

    def inner(place: Path) -> None:
        folder = place / "outputs/run/checkpoints"
        folder.rename(place / "outputs/elsewhere")
        folder.symlink_to(target)

    return inner


def only_a_pickle(place: Path) -> None:
    for name in (MANIFEST, WEIGHTS, TRAINING):
        (place / STEP / name).unlink()
    (place / STEP / "model.pt").write_bytes(torch_file())
    (place / STEP / "checkpoint.pkl").write_bytes(pickled())


def twice(place: Path) -> None:
    """A key that occurs twice: the digest is right for the last; readers may take the first."""
    path = place / STEP / MANIFEST
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("{", '{"step": 0,', 1), encoding="utf-8")


def copied(old: str, new: str) -> Edit:
    return lambda found: found.update({new: found[old].clone()})


E32 = "embed.weight"
PICKLES = [
    Case("a pickle as the weights", file(WEIGHTS, pickled), ALL),
    Case("a pickle as the training state", file(TRAINING, pickled), {"resume"}),
    Case("a pickle as the manifest", in_step(MANIFEST, lambda p: p.write_bytes(pickled())), ALL),
    Case("pickles and no checkpoint", only_a_pickle, FROM),
    Case("torch's zip as the weights", file(WEIGHTS, torch_file), ALL),
    Case("model.pt as ckpt=", lambda place: (place / "model.pt").write_bytes(torch_file()), FROM,
        "model.pt"),
]  # fmt: skip
MANIFESTS = [
    Case("_target_ in the model", model(_target_="os.system"), ALL),
    Case("an interpolation in the model", model(norm="${oc.env:SECRET}"), SAMPLE),
    Case(
        "an interpolation as the tokenizer",
        manifest(lambda m: m["tokenizer"].update(kind="${oc.env:SECRET}")), SAMPLE,
    ),
    Case("a billion layers", model(n_layer=10**9), ALL),
    Case("a number of 4000 digits", model(n_layer=10**4000), SAMPLE),
    Case("the largest model", largest, ALL),
    Case("the largest model with a file of a terabyte", largest_and_huge, MOST),
    Case("a larger model than mine", larger_than_mine, {"train"}),
    Case("a weight file of another name", manifest(lambda m: m.update(
        files={"../../../../../../etc/passwd": "0" * 64})), MOST),
    Case("an alphabet of a megabyte", manifest(lambda m: m.update(
        tokenizer={"kind": "char", "characters": "".join(map(chr, range(57344, 330000)))})),
        SAMPLE),
    Case("a vocabulary that is not GPT-2's", manifest(lambda m: m.update(
        tokenizer={"kind": "gpt2", "merges": "#version: 0.2\na b\n"})), SAMPLE),
    Case("a manifest deeper than Python", in_step(
        MANIFEST, lambda p: p.write_text('{"model":' + "[" * 200_000)), MOST),
    Case("a key twice", twice, ALL),
    Case("a manifest that is a pipe", in_step(MANIFEST, os.mkfifo), ALL),
    Case(
        "a manifest without end", in_step(MANIFEST, lambda p: p.symlink_to("/dev/zero")), MOST
    ),
    Case("a manifest of 100 MB", in_step(MANIFEST, lambda p: sparse(p, 100 << 20)), MOST),
]  # fmt: skip
TENSORS = [
    Case("a claim of 4 TB", header(lambda h: h[E32].update(shape=[10**6, 10**6])), ALL),
    Case("offsets that overlap", header(lambda h: h[E32].update(
        data_offsets=h["norm.weight"]["data_offsets"])), SAMPLE),
    Case("offsets beyond the end", header(lambda h: h[E32].update(
        data_offsets=[2**40, 2**40 + 1])), ALL),
    Case("an unknown type", header(lambda h: h[E32].update(dtype="OBJECT")), SAMPLE),
    Case("a header of 100 MB", file(
        WEIGHTS, lambda: (100 << 20).to_bytes(8, "little") + b"{" + b" " * (100 << 20)), SAMPLE),
    Case("a claim of one", file(WEIGHTS, lambda: (100 << 20).to_bytes(8, "little")), SAMPLE),
    Case("a terabyte of weights", in_step(WEIGHTS, lambda p: sparse(p, 1 << 40)), ALL),
    Case("weights that are a pipe", in_step(WEIGHTS, os.mkfifo), ALL),
    Case("weights without end", in_step(WEIGHTS, lambda p: p.symlink_to("/dev/zero")), MOST),
    Case("another shape", tensors(lambda t: t.update({"norm.weight": torch.ones(33)})), ALL),
    Case("a tensor under another name", tensors(
        lambda t: t.update({"../embed.weight": t.pop(E32)})), SAMPLE),
    Case("a tensor less", tensors(lambda t: t.pop(E32)), ALL),
    Case("one NaN", tensors(lambda t: t[E32][3].fill_(torch.nan)), ALL),
]  # fmt: skip
OPTIMIZER = f"optimizer/{E32}"
STATES = [
    Case(name, change, {"resume"})
    for name, change in (
        ("a run_id that is a path", state(run_id="../../../escaped")),
        ("a run_id that is a list", state(run_id=["a"])),
        ("counters that are text", state(progress={"step": "${oc.env:SECRET}"})),
        ("counters of another name", state(progress={"__class__": 1})),
        ("a step of two kinds", manifest(lambda m: m["state"]["progress"].update(step=5))),
        ("losses that are text", manifest(lambda m: m["state"]["guard"].update(losses=["x"]))),
        ("a count below zero", manifest(
            lambda m: m["state"]["guard"].update(skipped_in_a_row=-1))),
        ("no guard", state(guard=None)),
        ("a scale that is text", state(loss_scale={"scale": "1", "finite_steps": 0})),
        ("a row that is text", manifest(
            lambda m: m["state"]["progress"].update(row={"loss": "${oc.env:SECRET}"}))),
        ("half of the optimizer", tensors(
            lambda t: t.pop(f"{OPTIMIZER}/exp_avg_sq"), TRAINING)),
        ("an optimizer of other shapes", tensors(
            lambda t: t.update({f"{OPTIMIZER}/exp_avg": torch.tensor(1.0)}), TRAINING)),
        ("as many step counts as weights", tensors(
            copied(f"{OPTIMIZER}/exp_avg", f"{OPTIMIZER}/step"), TRAINING)),
        ("an optimizer of another kind", tensors(
            copied(f"{OPTIMIZER}/exp_avg", f"{OPTIMIZER}/momentum"), TRAINING)),
        ("no random state", tensors(
            lambda t: t.update({"random/cpu": torch.zeros(3, dtype=torch.uint8)}), TRAINING)),
        ("a generator beyond its end", tensors(
            lambda t: t["random/numpy"].fill_(2**40), TRAINING)),
        ("NaN in the optimizer", tensors(
            lambda t: t[f"{OPTIMIZER}/exp_avg"].fill_(torch.nan), TRAINING)),
    )
]  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, key in zip("abcdefgh", "bcdefghi", strict=True)
)
FOLDERS = [
    Case(name, change, {"resume"})
    for name, change in (
        ("aliases for a billion values", added(BOMB)),
        ("_target_ in config.yaml", config("model:\n", "model:\n  _target_: os.system\n")),
        ("_args_ in config.yaml", added("_args_: [1]")),
        ("an object in config.yaml", config(
            "project: llm", f"project: !!python/object/apply:os.system ['rm {CANARY}']")),
        ("an interpolation in config.yaml", config("project: llm", "project: ${oc.env:SECRET}")),
        ("one for a number", config("n_layer: 1", "n_layer: ${oc.env:SECRET}")),
        ("an optimizer elsewhere", config("name: muon", "name: ../../x")),
        ("a key of config.yaml twice", added("seed: 1")),
        ("an unknown key of config.yaml", added("shell: 'true'")),
        ("a section of Hydra's", added("hydra: {run: {dir: /tmp}}")),
        ("a billion layers in config.yaml", config("n_layer: 1", "n_layer: 1000000000")),
        ("a number of a megabyte", config("n_layer: 1", "n_layer: 0x" + "f" * 400_000)),
        ("minutes and seconds without end", config("n_layer: 1", "n_layer: 1" + ":1" * 200_000)),
        ("a config.yaml deeper than Python", config("n_layer: 1", "n_layer: " + "[" * 200_000)),
        ("as many values as fit", config("tags: []", "tags: [" + "1," * 200_000 + "]")),
        ("a name of a folder elsewhere", config("name: text", "name: ../../../tmp")),
        ("a config.yaml of 100 MB", instead("config.yaml", lambda p: sparse(p, 100 << 20))),
        ("a config.yaml that is a pipe", instead("config.yaml", os.mkfifo)),
        ("a config.yaml without end", instead(
            "config.yaml", lambda p: p.symlink_to("/dev/zero"))),
        ("a file of the user's as config.yaml", instead(
            "config.yaml", lambda p: p.symlink_to("/etc/passwd"))),
        ("a summary that is a pipe", instead("summary.json", os.mkfifo)),
        ("metrics that are a pipe", instead("metrics.jsonl", os.mkfifo)),
        ("a lock that is a pipe", instead(".lock", os.mkfifo)),
        ("a log that is a file of the user's", instead(
            "run_train.log", lambda p: p.symlink_to(f"../../{CANARY}"))),
        ("samples that will be one", instead(
            "samples.jsonl", lambda p: p.symlink_to("../../written.txt"))),
        ("checkpoints that lead to themselves", checkpoints_as("checkpoints")),
        ("checkpoints in a folder of the user's", checkpoints_as("../elsewhere")),
    )
]  # fmt: skip
CORPUS = [*PICKLES, *MANIFESTS, *TENSORS, *STATES, *FOLDERS]
