"""Which layout, which row, at what cost."""

import re
from dataclasses import replace

import pytest

from samestep.errors import RecipeError
from samestep.plan import cost, layouts, memory, proposal
from samestep.plan.cost import Price
from samestep.plan.devices import device
from samestep.plan.facts import Facts
from samestep.plan.layouts import Work
from samestep.plan.proposal import Wish
from samestep.plan.training import Training

LLAMA = Facts(32, 4096, 32, 8, 128, 14336, 128256, tied=False)
SMALL = Facts(6, 384, 6, 6, 64, 1024, 4096)
H100 = device("H100")
TRAINING = Training(2048, 2, kernels="compiled", stage=1)
WISH = Wish(LLAMA, TRAINING, Work(512, free=True), 1e9)
LITTLE = Wish(SMALL, replace(TRAINING, context=256, micro_batch=4), Work(64), 1e8)
PRICE = Price(4.0, "somewhere", "2026-01-01")


def test_what_is_chosen_fits_and_makes_up_a_step():
    for gpus in (8, 24, 64):
        chosen = layouts.best(H100, LLAMA, TRAINING, gpus, WISH.work).training
        assert memory.fits(H100, LLAMA, chosen)
        assert chosen.micro_batch * chosen.accumulate * chosen.replicas >= 512


def test_the_simplest_of_equals_is_chosen():
    chosen = layouts.best(H100, SMALL, LITTLE.training, 4, LITTLE.work).training
    assert (chosen.stage, chosen.tensor, chosen.pipeline, chosen.checkpointing) == (1, 1, 1, "none")


def test_more_replicas_than_shares_of_a_step_have_no_layout():
    whole = replace(SMALL, heads=1, key_heads=1, head_size=384)  # one head cannot be split
    assert layouts.best(H100, whole, LITTLE.training, 16, LITTLE.work) is not None
    assert layouts.best(H100, whole, LITTLE.training, 32, LITTLE.work) is None


def test_lanes_stay_whole():
    work = Work(64, together=4)  # 16 micro-batches of 4 rows in 4 lanes
    assert layouts.spread(replace(LITTLE.training, gpus=3), work).accumulate == 8
    assert layouts.spread(replace(LITTLE.training, gpus=8), work) is None


def test_what_helps_is_in_the_order_of_its_cost_and_leaves_the_model_alone_first():
    asked = replace(TRAINING, gpus=8, accumulate=32)
    found = layouts.remedies(H100, LLAMA, asked, Work(512))
    helping = [name for name, seconds in found.items() if seconds is not None]
    assert helping[0] == "full sharding" and found["micro-batch 1"] is None
    same = [found[name] for name in helping if not name.startswith(layouts.OTHERWISE)]
    assert same == sorted(same) and list(found)[: len(helping)] == helping


def test_rows_take_longer_and_cost_more_where_stops_cost():
    one, many = proposal.rows(H100, WISH, [8, 64], PRICE)
    assert one.fits and many.fits and many.hours < one.hours
    assert one.dollars == pytest.approx(one.hours * 8 * 4.0)
    assert 0 < many.goodput < 1 and many.efficiency <= 1.0001


def test_the_recommended_row_is_the_fastest_of_those_that_cost_little_more():
    rows = proposal.rows(H100, WISH, [8, 16, 32], PRICE)
    dear = [replace(row, dollars=dollars) for row, dollars in zip(rows, (100.0, 110.0, 130.0), strict=True)]
    found = proposal.marks(dear)
    assert (found.cheapest, found.recommended, found.fastest) == (0, 1, 2)
    said = r"16 H100-SXM: \d\.\d times as fast as the cheapest for 10% more; 32 H100-SXM would be \d\.\d times as fast"
    assert re.match(said, found.reason)
    assert proposal.marks(dear[:1]).reason == (
        "8 H100-SXM: the cheapest, and none that costs up to 15 % more is faster"
    )


def test_without_prices_hours_of_gpus_are_counted():
    assert proposal.marks(proposal.rows(H100, WISH, [8, 64], None)).cheapest == 0


def test_where_nothing_fits_nothing_is_marked():
    rows = proposal.rows(device("RTX 4090"), WISH, [1], None)
    assert not rows[0].fits and rows[0].step == {} and proposal.marks(rows).recommended is None


def test_tuning_adapters_takes_less_and_training_from_nothing_takes_more():
    full, lora, scratch = proposal.ways(H100, replace(WISH, tokens=1e7), [8], PRICE)
    assert lora.row.needed < full.row.needed and lora.row.hours < full.row.hours
    assert scratch.tokens == 20 * LLAMA.parameters and scratch.row.hours > 1000 * full.row.hours
    assert proposal.advice(WISH, "it").startswith("tune: 1 G tokens are 0.6 % of the 20")
    assert proposal.advice(replace(WISH, tokens=2e11), "it").startswith("train: 200 G tokens are 124.5 %")


def test_stops_are_as_often_as_llama_3_had_them():
    found = cost.stops(16384, 2048, 54 * 86400, 10.0, 8e12)
    assert found.expected == pytest.approx(419)
    assert 0.85 < found.restart < 0.95 and 0.99 < found.survivors < 1  # Llama 3: above 90 % effective training time


def test_a_checkpoint_interval_is_the_one_that_loses_least():
    best = cost.stops(1024, 128, 1e6, 1.0, 1e12)
    between, write = cost.BETWEEN / 1024, 1e12 / (cost.STORED * 128)

    def lost(every):
        return write / every + every / 2 / between

    assert lost(best.every) <= min(lost(0.8 * best.every), lost(1.2 * best.every))


def test_a_price_table_of_ones_own_is_read_and_a_wrong_one_refused(tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text("H100-SXM: {dollars: 2, source: us, date: 2026-01-02}\n")
    assert cost.prices(file) == {"H100-SXM": Price(2.0, "us", "2026-01-02")}
    file.write_text("H100-SXM: 2\n")
    with pytest.raises(RecipeError, match=r"is no price table; write lines of the form NAME: \{dollars: 1.99"):
        cost.prices(file)
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        cost.prices(tmp_path / "none.yaml")


def test_every_price_that_is_kept_is_of_a_known_device_and_dated():
    for name, price in cost.prices().items():
        assert device(name).name == name and price.source and price.date.startswith("2026-") and price.dollars > 0
