"""Free text and paths reach a run exactly as they were typed."""

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from llm.config.compose import read_settings
from llm.config.verbatim import (
    BREAK,
    FREE,
    TEXTS,
    WORDS,
    as_typed,
    guard,
    map_text,
    quote_argument,
    quote_arguments,
    unguard,
)
from llm.errors import Refused
from llm.settings.keys import ALL_KEYS
from llm.settings.sample import SampleSettings
from llm.settings.schema import LoggerSection, TrainSettings
from tests.command_line import composed
from tests.conftest import ROOT

# An argument cannot hold NUL; lone surrogates are not text; BREAK is in no text.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0" + BREAK))
# The characters that Hydra's grammar or OmegaConf gives a meaning to, many of them together.
NASTY = st.text(st.sampled_from("\\'\"${}[]()=,:;?~+@#*<>|&!%/ \t\n\r.ab0"), max_size=20)
EDGES = [
    "", "null", "???", "${oc.env:HOME}", "\\${x}", " What's this, (my lord)?\n", "a\\", "[a",
    "{a: b}", "'???'", "true", "1e3", "$${x}", "\\\\${x}", "${${${}}}", '"', "'", "\\", "\\\\'",
    " a ", "  ", "\n", "a\nb\n", "a, b", "a=b", "=", "key=1,2", "choice(1,2)", "~", "é😀\u2028",
]  # fmt: skip


def test_any_prompt_survives_the_command_line() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):

        def check(prompt: str) -> None:
            cfg = compose("sample", overrides=["ckpt=x", quote_argument(f"prompt={prompt}")])
            assert read_settings(cfg, SampleSettings).prompt == prompt

        for prompt in EDGES[:9]:
            check(prompt)
        settings(max_examples=12, deadline=None, database=None)(given(TEXT | NASTY)(check))()


@given(TEXT | NASTY | st.sampled_from(EDGES))
@settings(max_examples=200, deadline=None, database=None)
def test_free_text_can_be_quoted_and_unquoted(text: str) -> None:
    argument = f"logger.notes={text}"
    assert as_typed(quote_argument(argument)) == argument


@given(TEXT | NASTY | st.sampled_from(EDGES))
@settings(max_examples=40, deadline=None, database=None)
def test_omegaconf_gives_no_meaning_to_guarded_text(text: str) -> None:
    plain = map_text(guard, {"resume": text, "logger": {"tags": [text, text]}})
    schema = OmegaConf.structured({"logger": LoggerSection, "resume": None})
    back = OmegaConf.to_container(OmegaConf.merge(schema, plain))
    assert isinstance(back, dict)
    made = TrainSettings(resume=back["resume"], logger=LoggerSection(**back["logger"]))
    made = map_text(unguard, made)
    assert (made.resume, made.logger.tags) == (text, [text, text])


def test_free_text_and_paths_of_a_training_run_survive_together() -> None:
    typed = {
        "data.path": "it's [a] {path}, ${HOME}/x.txt",
        "data.dir": "my data, (new)",
        "logger.notes": "lr=1e-3, 'twice'\nand again",
        "logger.name": "${oc.env:HOME}",
        "run.dir": "outputs/a b=c",
        "run.note": "outputs/~x\\y",
    }
    arguments = quote_arguments([f"{key}={value}" for key, value in typed.items()])
    found = read_settings(composed("train", "data=text", *arguments), TrainSettings)
    back = [found.data.path, found.data.dir, found.logger.notes, found.logger.name]
    assert [*back, found.run.dir, found.run.note] == list(typed.values())


def test_null_stays_null_for_options_that_may_be_null() -> None:
    for key in (key for key in FREE if ALL_KEYS[key] is not str):
        assert as_typed(quote_argument(f"{key}=null")) == f"{key}=null"


@pytest.mark.parametrize(
    "stops",
    [["a, b"], ["[a, b]"], ["\n\n", "null", "${x}", "it's (me)"], ["???", "'", "\\"]],
    ids=str,
)
def test_stop_strings_are_taken_as_typed_and_may_be_several(stops: list[str]) -> None:
    typed = ["seed=1", *(f"stop={stop}" for stop in stops), "prompt=x"]
    found = read_settings(composed("sample", "ckpt=x", *quote_arguments(typed)), SampleSettings)
    assert (found.stops(), found.prompt, found.seed) == (stops, "x", 1)


@pytest.mark.parametrize("name", ["1e5", "12e34567", "true", "1_000", "007", ".5", "NaN"])
def test_a_name_that_looks_like_a_number_is_kept_as_it_was_typed(name: str) -> None:
    typed = quote_arguments([f"data.name={name}"])
    assert read_settings(composed("train", *typed), TrainSettings).data.name == name


@pytest.mark.parametrize(
    "argument",
    [
        "model.n_layer=4,6", "-m", "--cfg", "prompt", "notes=a, b", "~seed", "+prompt=a",
        "seed=${x}", "trainer.device=cuda:0", "run.name=range(1,3)", "seed=1e5",
    ],
)  # fmt: skip
def test_other_arguments_are_left_alone(argument: str) -> None:
    assert quote_arguments([argument]) == [argument]


@pytest.mark.parametrize(
    "argument",
    [
        "run.name=我的模型", "logger.tags=[ü]", "experiment=实验一,实验二",
        "logger={project: 项目}", "promt=小明 你好", "model.norm=choice(层,rmsnorm)",
        "+seed=四",
        "run.name=1e5", "run.sweep=12e34567", "logger.project=true", "data.name=1_000,2",
    ],
)  # fmt: skip
def test_a_quoted_argument_is_not_quoted_again(argument: str) -> None:
    quoted = quote_argument(argument)
    assert quote_argument(quoted) == quoted != argument


def test_the_keys_that_hydra_reads_hold_text() -> None:
    assert WORDS < TEXTS


@pytest.mark.parametrize(
    "argument",
    [
        "seed=${oc.env:X}", "+notes=${x:}", "model=${oc.env:X}", "hydra.run.dir=${now:%Y}",
        "logger={project: '${oc.env:X}'}", "seed=${a.${oc.env:X}}", "seed=\\${a}",
    ],
)  # fmt: skip
def test_an_argument_that_calls_a_function_is_refused_and_not_repeated(argument: str) -> None:
    key = argument.partition("=")[0]
    with pytest.raises(Refused) as refusal:
        quote_arguments(["seed=1", argument])
    message = f"{key} holds an interpolation other than ${{key}}: give the value itself"
    assert str(refusal.value) == message
