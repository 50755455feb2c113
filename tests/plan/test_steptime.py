"""The model of kernels, and steps that are made of them."""

from dataclasses import replace

import pytest

from samestep.plan import exchange, kernels, observed, steptime
from samestep.plan.constants import constants
from samestep.plan.devices import device, devices
from samestep.plan.facts import Facts
from samestep.plan.training import Training

LLAMA = Facts(32, 4096, 32, 8, 128, 14336, 128256, tied=False)
SMALL = Facts(12, 768, 12, 12, 64, 3072, 50304, gated=False)
A100, H100 = device("A100"), device("H100")
RUN = Training(2048, 4, gpus=8, stage=3, mixed=False)
NUMBERS = constants()


def seconds(training=RUN, facts=LLAMA, gpu=A100):
    return sum(steptime.step(gpu, facts, training).values())


def test_a_large_product_reaches_most_of_the_ceiling_and_a_small_one_waits_for_memory():
    large = kernels.product(A100, "bf16", 16384, 16384, 16384, NUMBERS)
    assert 0.85 < 2 * 16384**3 / large / (A100.ceiling["bf16"] * NUMBERS.sustained) <= 1
    row = kernels.product(A100, "bf16", 1, 4096, 4096, NUMBERS)
    assert row >= 2 * 4096**2 / A100.bandwidth


def test_a_product_whose_tiles_do_not_fill_the_last_wave_pays_for_it():
    def rate(columns):
        return columns / kernels.product(A100, "bf16", 108 * 256, columns, 4096, NUMBERS)

    assert rate(256) > 1.05 * rate(136)


@pytest.mark.parametrize("gpu", devices())
def test_a_step_is_never_faster_than_the_peak(gpu):
    speed = steptime.tokens_per_second(devices()[gpu], LLAMA, RUN)
    assert 0 < steptime.utilisation(devices()[gpu], LLAMA, RUN, speed) < 1


def test_what_is_computed_again_costs_about_a_third_of_forward_and_backward():
    again = steptime.step(A100, LLAMA, replace(RUN, checkpointing="full"))
    done = again["matrices"] + again["attention"] + again["elementwise"]
    assert 0.3 < again["recompute"] / done < 0.36


def test_attention_of_long_rows_is_more_of_a_step_and_scores_cost_more_than_flash():
    short, long = (steptime.step(A100, LLAMA, replace(RUN, context=c, micro_batch=8192 // c)) for c in (2048, 8192))
    assert long["attention"] > 3.5 * short["attention"] and long["matrices"] == pytest.approx(short["matrices"])
    assert seconds(replace(RUN, flash=False)) > seconds()


def test_small_kernels_wait_for_their_launches():
    tiny = Training(128, 1)
    assert steptime.step(H100, SMALL, tiny)["launches"] > 0
    assert steptime.step(H100, LLAMA, RUN)["launches"] == 0


def test_adapters_save_the_gradients_of_weights():
    assert seconds(replace(RUN, rank=16)) < 0.8 * seconds()


def test_an_all_reduce_sends_twice_what_a_gather_does():
    wide = replace(RUN, gpus=64)
    once, twice = (f(A100, wide, 1e10, NUMBERS) for f in (exchange.gathered, exchange.reduced))
    assert twice == pytest.approx(2 * once, rel=0.01)
    assert once > 1e10 * 63 / 64 / wide.network / NUMBERS.routed * 0.99


def test_a_slow_network_shows_and_one_host_does_not_feel_it():
    wide = replace(RUN, gpus=64, stage=0)
    shown = [steptime.step(A100, LLAMA, replace(wide, network=rate))["exchange"] for rate in (2e11, 1e9)]
    assert shown[1] > 20 * shown[0]
    inside = [seconds(replace(RUN, network=rate)) for rate in (2e11, 1e9)]
    assert inside[0] == inside[1]


def test_a_pipeline_waits_for_its_first_and_last_micro_batches():
    piped = replace(RUN, gpus=4, pipeline=4, stage=0, accumulate=8)
    few, many = (steptime.step(A100, LLAMA, replace(piped, accumulate=n)) for n in (8, 64))
    assert few["bubble"] == pytest.approx(many["bubble"])
    assert steptime.step(A100, LLAMA, replace(piped, chunks=2))["bubble"] < 0.6 * few["bubble"]


def test_tensor_parallel_pays_for_its_exchanges_most_of_all_between_hosts():
    inside = steptime.step(A100, LLAMA, replace(RUN, tensor=8, stage=0))["tensor"]
    across = steptime.step(A100, LLAMA, replace(RUN, tensor=8, stage=0, host=4))["tensor"]
    assert 0 < 5 * inside < across


def test_flops_are_six_a_parameter_and_twelve_a_width_and_position():
    outside = LLAMA.vocabulary * LLAMA.width + (2 * LLAMA.layers + 1) * LLAMA.width
    assert steptime.flops(LLAMA, 0) == pytest.approx(6 * (LLAMA.parameters - outside), rel=1e-3)
    assert steptime.flops(LLAMA, 2048) - steptime.flops(LLAMA, 0) == 12 * 32 * 4096 * 2048


def test_one_run_corrects_what_computes_and_nothing_else():
    seen = 1.3 * seconds()
    slower = observed.slowness(A100, LLAMA, RUN, seen)
    assert 1.1 < observed.seconds(A100, LLAMA, RUN, slower) / seconds() < 1.3
    assert observed.slowness(A100, LLAMA, RUN, seconds()) == pytest.approx(1)
    wide = replace(RUN, gpus=64)
    parts = steptime.step(A100, LLAMA, wide)
    more = observed.seconds(A100, LLAMA, wide, slower) - sum(parts.values())
    apart = sum(parts[name] for name in observed.APART)
    assert more == pytest.approx((slower - 1) * (sum(parts.values()) - apart))
