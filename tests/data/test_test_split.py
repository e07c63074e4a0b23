"""``data.test_fraction``: a third split. Without it nothing about a dataset changes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from llm.checkpoint.find import find_checkpoint, read_manifest
from llm.data import corpus
from llm.data.config import TOKENIZERS, DataConfig
from llm.data.corpus import HELD_OUT_PLAYS, TEST_PLAYS, Document
from llm.data.dataset import Dataset
from llm.data.prepare import folder_of, prepare
from llm.data.writing import parts_of, split_documents
from llm.errors import Refused
from llm.settings.identity import config_digest
from llm.settings.saved import load_plain
from tests.command_line import here
from tests.conftest import ROOT, TINY_RUN
from tests.data.meta_file import edit_meta

KEPT = ROOT / "tests" / "kept" / "0.2.0"


@pytest.fixture
def config(text_file: Path, tmp_path: Path) -> DataConfig:
    """A text by characters, with a test split."""
    return DataConfig(
        "play", "text", str(tmp_path / "data"), str(text_file), "char", None, 0.1, 0.2
    )


def texts(folder: Path) -> dict[str, str]:
    """The text of each split."""
    dataset = Dataset.open(folder)
    dataset.verify()
    decode = dataset.tokenizer.decode
    return {split: decode(ids.tolist()) for split, ids in dataset.splits.items()}


FRACTIONS = st.floats(0.01, 0.98)


@examples(max_examples=60, deadline=None, database=None)
@given(st.text(st.sampled_from("ab中é🎭 \n"), max_size=80), FRACTIONS, FRACTIONS, st.integers(1, 9))
@example("abcd", 0.25, 0.25, 1)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_splits_are_the_text_in_order_without_overlap(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: str, text: str, val: float, test: float,
    piece: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("splits")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    config = DataConfig(
        "t", "text", str(folder / "data"), str(folder / "text.txt"), tokenizer,
        val_fraction=val, test_fraction=test,
    )  # fmt: skip
    borders = int(len(text) * (1 - val - test)), int(len(text) * (1 - test))
    expected = [text[: borders[0]], text[borders[0] : borders[1]], text[borders[1] :]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", piece)
        if val + test < 1 and all(expected):
            assert texts(prepare(config)) == dict(
                zip(("train", "val", "test"), expected, strict=True)
            )
            return
        with pytest.raises(Refused) as refusal:
            prepare(config)
    assert "\n" not in str(refusal.value)
    assert not (folder / "data").exists()


@examples(max_examples=100, deadline=None, database=None)
@given(
    st.lists(st.tuples(st.text("ab", max_size=6), st.booleans(), st.booleans()), min_size=1),
    st.none() | FRACTIONS,
)
def test_whole_documents_are_chosen_for_testing_and_those_for_validation_stay(
    made: list[tuple[str, bool, bool]], fraction: float | None
) -> None:
    documents = [Document(str(n), t.encode(), val, test) for n, (t, val, test) in enumerate(made)]
    lengths = [len(text) for text, _, _ in made]
    config = DataConfig(test_fraction=fraction)
    parts = parts_of(config, documents, lengths)
    for (split, _), document in zip(parts, documents, strict=True):
        assert (split == "val") == document.held_out
    size, wanted = {"train": 0, "val": 0, "test": 0}, (fraction or 0.0) * sum(lengths)
    for (split, _), length in zip(parts, lengths, strict=True):
        size[split] += length
    assert size["test"] >= wanted or size["train"] == 0
    in_test = [n for n, (split, _) in enumerate(parts) if split == "test"]
    if in_test:  # one document less would not be enough
        last_chosen = min(in_test, key=lambda n: (documents[n].test_first, n))
        assert size["test"] - lengths[last_chosen] < wanted
    cut = list(split_documents(documents, lambda one: one.pieces(), parts, special=False))
    assert "".join(text for _, text in cut if text) == "".join(text for text, _, _ in made)
    for split in size:
        assert sum(len(text) for name, text in cut if name == split and text) == size[split]


def test_the_test_plays_are_a_tenth_of_shakespeare_and_none_is_in_tiny_shakespeare() -> None:
    documents = corpus.read_corpus("shakespeare").load()
    lengths = [len("".join(document.pieces())) for document in documents]
    names = [document.name for document in documents]

    def plays(fraction: float | None) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
        parts = parts_of(DataConfig(test_fraction=fraction), documents, lengths)
        for (split, _), name in zip(parts, names, strict=True):
            found[split].add(name)
        return found

    assert plays(0.1)["test"] == set(TEST_PLAYS)
    assert plays(0.1)["val"] == plays(None)["val"] == set(HELD_OUT_PLAYS)
    assert plays(0.2)["test"] > plays(0.1)["test"] > plays(0.05)["test"] > plays(None)["test"]
    tiny = {
        "coriolanus", "richard-ii", "richard-iii", "henry-vi-part-3", "romeo-and-juliet",
        "measure-for-measure", "the-taming-of-the-shrew", "a-winter-s-tale", "the-tempest",
    }  # fmt: skip
    assert tiny < set(names)
    assert not tiny & (set(TEST_PLAYS) | set(HELD_OUT_PLAYS))


def test_a_test_split_of_plays_leaves_the_validation_text_as_it_was(
    plays: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = corpus.assets.shakespeare_plays() | {"othello": "OTHELLO:\nFarewell!\n"}
    monkeypatch.setattr(corpus.assets, "shakespeare_plays", lambda: three)
    without = texts(prepare(plays))
    found = texts(prepare(replace(plays, name="tested", test_fraction=0.1)))
    assert found == {
        "train": "HAMLET:\nTo be.\n\n", "val": without["val"],
        "test": "OTHELLO:\nFarewell!\n\n",
    }  # fmt: skip
    with pytest.raises(Refused, match=r"^data\.test_fraction leaves train no text: take another$"):
        prepare(replace(plays, name="all", test_fraction=0.9))


def test_end_of_text_marks_stay_in_the_part_where_they_start(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("0123456789<|endoftext|>0123456", encoding="utf-8")  # 30 characters
    config = DataConfig("t", "text", str(tmp_path), str(path), "byte", allow_special=True)
    made = Dataset.open(prepare(replace(config, val_fraction=0.5, test_fraction=0.2)))
    assert made.train.tolist() == [*b"012345678"]
    assert made.val.tolist() == [*b"9", 256, *b"0"]
    assert made.test is not None
    assert made.test.tolist() == [*b"123456"]


def test_meta_json_tells_the_three_splits_and_verify_checks_each(config: DataConfig) -> None:
    folder = prepare(config)
    meta = json.loads((folder / "meta.json").read_text())
    for key in ("tokens", "bytes", "sha256"):
        assert list(meta[key]) == ["train", "val", "test"]
    assert meta["made_from"]["test_fraction"] == 0.2
    raw = (folder / "test.bin").read_bytes()
    (folder / "test.bin").write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(Refused, match=r"test\.bin is damaged: its sha256 differs"):
        Dataset.open(folder).verify()
    (folder / "test.bin").unlink()
    with pytest.raises(Refused, match=r"test\.bin has -1 bytes"):
        Dataset.open(folder)
    edit_meta(folder, lambda meta: meta["bytes"].pop("test"))
    with pytest.raises(Refused, match="tokens, bytes and sha256 name different splits"):
        Dataset.open(folder)


def test_a_test_split_that_is_shorter_than_a_window_is_refused(config: DataConfig) -> None:
    dataset = Dataset.open(prepare(replace(config, test_fraction=0.001)))
    dataset.check(20, 99)
    with pytest.raises(Refused, match=r"test\.bin has 21 tokens, and model\.block_size=21 needs"):
        dataset.check(21, 99)


def test_without_a_fraction_files_folders_and_digests_are_those_of_earlier_versions(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(KEPT)
    kept = KEPT / "prepared/text-a2f1423f29af"
    path = "play.txt"
    as_then = DataConfig("text", "text", "prepared", path, "char", None, 0.1)
    assert folder_of(as_then) == kept.relative_to(KEPT)
    made = prepare(replace(as_then, dir=str(tmp_path)))
    for file in ("meta.json", "train.bin", "val.bin"):
        assert (made / file).read_bytes() == (kept / file).read_bytes()
    assert sorted(file.name for file in made.iterdir()) == ["meta.json", "train.bin", "val.bin"]
    recorded = read_manifest(find_checkpoint("ckpt", str(KEPT / "run"))).identity
    assert Dataset.open(made).digest == recorded["data_digest"]
    assert (
        config_digest(load_plain(KEPT / "run"), recorded["data_digest"])
        == (recorded["config_digest"])
    )


def test_folders_with_and_without_a_test_split_are_not_mistaken_for_each_other(
    config: DataConfig, plays: DataConfig
) -> None:
    assert len({folder_of(replace(config, test_fraction=one)) for one in (None, 0.1, 0.2)}) == 3
    folder = prepare(plays)
    with pytest.raises(Refused, match=r"prepared with test_fraction=null, but .*=0\.1: "):
        prepare(replace(plays, test_fraction=0.1))
    halves = replace(plays, val_fraction=0.4, test_fraction=0.4, overwrite=True)
    assert prepare(halves) == folder
    with pytest.raises(Refused, match=r"test_fraction=0\.4, but .*test_fraction=null: "):
        prepare(replace(halves, test_fraction=None, overwrite=False))
    prepare(replace(plays, overwrite=True))
    assert not (folder / "test.bin").exists()


def test_prepare_shows_the_split_and_a_run_keeps_its_fraction(
    tmp_path: Path, text_file: Path
) -> None:
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=char", "data.test_fraction=0.2"]
    shown = here("prepare", *data, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "test       4,132 tokens, which training never reads" in shown.stdout
    first = here("train", *data, *TINY_RUN, "run.name=a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    for typed in (
        ["resume=outputs/a", "data.test_fraction=0.3", "trainer.max_steps=9"],
        [*data[:-1], *TINY_RUN, "run.name=a"],
    ):
        refused = here("train", *typed, cwd=tmp_path)
        assert refused.returncode == 2
        assert "data.test_fraction was 0.2, now" in refused.stderr
    for wrong, why in (("0", "more than 0"), ("0.9", "their sum must be less than 1")):
        refused = here("prepare", *data[:-1], f"data.test_fraction={wrong}", cwd=tmp_path)
        assert refused.returncode == 2
        assert why in refused.stderr
