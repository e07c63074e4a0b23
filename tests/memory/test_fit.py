"""The fastest changes that make a run fit, and the largest size that fits."""

import random
from dataclasses import replace

import pytest

from llm.memory import fit as fitting
from llm.memory import predict
from llm.memory.fit import cheapest_changes, cost, fit, largest, next_larger, with_size
from llm.memory.options import SIZES
from llm.memory.predict import Setup
from llm.model.config import GPTConfig

RESERVE = {"reserve": 600 * 2**20}
GIB = 2**30


def setup(n_layer: int = 12, n_embed: int = 768, batch: int = 12, **changed: object) -> Setup:
    config = GPTConfig(
        n_layer=n_layer, n_embed=n_embed, head_size=64, block_size=512, vocab_size=50304
    ).resolve()
    plain = Setup(config, batch_size=batch, micro_batch=batch, precision="bf16", device="cuda")
    return replace(plain, **changed)  # type: ignore[arg-type]  # by name


def total(one: Setup) -> int:
    return predict.predict(one, RESERVE).total


def test_a_setup_that_fits_is_not_changed() -> None:
    found = fit(setup(), total(setup()), RESERVE)
    assert found and found.setup == setup()
    assert found.changes == () and found.slowdown == 1.0


@pytest.mark.parametrize("share", [0.95, 0.85, 0.75, 0.65, 0.5])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_changed_setup_fits_with_the_same_tokens_per_step(optimizer: str, share: float) -> None:
    before = setup(optimizer=optimizer)
    budget = int(share * total(before))
    found = fit(before, budget, RESERVE)
    if found is None:  # the next test shows that no change fits then
        return
    assert found.prediction.total == total(found.setup) <= budget
    assert found.setup.batch_size == before.batch_size
    assert before.batch_size % found.setup.micro_batch == 0
    assert found.changes and found.slowdown >= 0.99


def test_no_other_change_that_fits_is_faster() -> None:
    generator = random.Random(7)
    for _ in range(60):
        layers, width = generator.choice((2, 4, 12)), generator.choice((128, 256, 768))
        before = setup(layers, width, generator.choice((2, 6, 12)))
        budget = int(RESERVE["reserve"] + generator.uniform(0.5, 1) * (total(before) - 600 * 2**20))
        sizes = [n for n in range(1, 13) if before.batch_size % n == 0]
        fitting_bits = {
            bits: [
                cost(one)
                for candidate in fitting.levers(replace(before, state_bits=bits))
                for size in ([before.batch_size] if candidate.step_in_backward else sizes)
                if total(one := replace(candidate, micro_batch=size)) <= budget
            ]
            for bits in (32, 8)
        }
        found = fit(before, budget, RESERVE)
        best = fitting_bits[32] or fitting_bits[8]
        assert (found is None) == (not best)
        if found is not None:
            assert cost(found.setup) == pytest.approx(min(best))


def test_8_bit_state_comes_last_and_only_if_the_library_is_installed() -> None:
    before = setup(n_layer=24, n_embed=1024)
    found = fit(before, 4 * GIB, RESERVE)
    assert found is not None and "optimizer.state_bits=8" in found.changes
    assert fit(before, 4 * GIB, RESERVE, eight_bit=False) is None
    easy = fit(before, int(0.9 * total(before)), RESERVE)
    assert easy is not None and easy.setup.state_bits == 32


def test_no_change_helps_if_the_weights_alone_are_too_large() -> None:
    assert fit(setup(n_layer=48, n_embed=1600), 4 * GIB, RESERVE) is None
    assert cheapest_changes(setup(n_layer=48, n_embed=1600), 4 * GIB, RESERVE) == []


def test_the_cheapest_changes_fit_and_none_contains_another() -> None:
    before = setup(model=setup().model)
    budget = int(0.8 * total(before))
    ways = cheapest_changes(before, budget, RESERVE)
    assert 2 <= len(ways) <= 3
    assert [way.slowdown for way in ways] == sorted(way.slowdown for way in ways)
    for way in ways:
        assert total(way.setup) <= budget
        keys = {change.partition("=")[0] for change in way.changes}
        for other in ways:
            if other is not way:
                assert not {change.partition("=")[0] for change in other.changes} <= keys


@pytest.mark.parametrize("levers", [False, True])
@pytest.mark.parametrize("key", SIZES)
def test_the_largest_value_fits_and_the_next_one_does_not(key: str, levers: bool) -> None:
    before = setup(n_layer=8)
    budget = int(1.1 * total(before)) if key != SIZES[3] else int(0.9 * total(before))

    def fits(number: int) -> bool:
        changed = with_size(before, key, number)
        fitted = fit(changed, budget, RESERVE) if levers else None
        kept = fitted and (key != SIZES[3] or fitted.setup.micro_batch == number)
        return total(changed) <= budget or bool(kept)

    found = largest(before, key, budget, RESERVE, levers)
    assert found is not None and fits(found)
    larger = next_larger(before, key, found)
    assert larger is None or not fits(larger)


def test_no_size_fits_a_budget_that_the_smallest_exceeds() -> None:
    assert largest(setup(), "n_layer", 700 * 2**20, RESERVE) is None
    assert next_larger(setup(), "n_layer", None) == 1
    assert next_larger(setup(), "n_embed", 64) == 128
    assert next_larger(setup(), "trainer.micro_batch_size", 6) == 12
    assert next_larger(setup(), "trainer.micro_batch_size", 12) is None
    whole = setup(step_in_backward=True)  # needs the whole batch at once
    assert next_larger(whole, "trainer.micro_batch_size", None) == 12


def test_the_search_skips_sizes_that_the_model_cannot_have() -> None:
    smeared = replace(setup(), model=replace(setup().model, smear=4))
    found = largest(smeared, "block_size", 8 * GIB, RESERVE)
    assert found is not None and found > 5
