import math
import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samestep.data.feed import IGNORED
from samestep.model.task import Task
from samestep.recipe.schema import Recipe
from samestep.recover import digest
from samestep.replica.finish import finish
from samestep.replica.job import Job
from samestep.replica.setup import fixed_of
from samestep.replica.split import WHOLE
from samestep.replica.watch import Watch
from samestep.wire import loopback

REPLICAS = pytest.mark.parametrize("replicas", [1, 2, 3])


class Scripted:
    """A model whose held-out loss at step n is curve[n - 1]. What it saves is the step."""

    def __init__(self, curve):
        self.curve, self.step = curve, 0

    def task(self):
        def measure(batch):
            return (batch.targets != IGNORED).sum() * float(self.curve[self.step - 1]), None

        def save(folder):
            folder.mkdir(exist_ok=True)
            save_file({"step": torch.tensor([self.step])}, folder / "model.safetensors")

        def generate(tokens, count, temperature, generator):
            return [*tokens, 4 + self.step]

        return Task(nn.Linear(1, 1), None, measure, lambda targets, _: targets, None, None, save, generate)


@pytest.fixture
def job(write_corpus, tmp_path):
    def job(held_out=(9, 14, 5, 30), format="text", objective="causal", prompt=None, **evaluate):
        recipe = Recipe(
            steps=20,
            data={"context": 8, "packing": False, "too_long": "truncate"},
            batch={"micro_batch": 2},
            objective={"kind": objective},
            evaluate=evaluate,
            sample={"prompt": prompt},
        )
        run = tmp_path / "run"
        run.mkdir()
        corpus = write_corpus("corpus", format, [5, 6], held_out)
        return Job("train", recipe, tmp_path, [corpus], run, 20, 20)

    return job


@pytest.fixture
def ran(told):
    def ran(job, curve, replicas, end=False):
        """Runs as the loop does; of each replica the step it stopped after and what it told."""

        def replica(wire):
            model, control = Scripted(curve), told()
            task = model.task()
            watch = Watch(job, task, fixed_of(job, "held_out"), control)
            watch.enter(wire)
            for model.step in range(1, len(curve) + 1):
                watch.after(model.step - 1, model.step)
                if watch.enough:
                    break
            if end:
                finish(
                    SimpleNamespace(
                        job=job,
                        task=task,
                        watch=watch,
                        wire=wire,
                        control=control,
                        split=WHOLE,
                        step=SimpleNamespace(number=model.step),
                    )
                )
            return model.step, control

        return loopback.run(replicas, replica)

    return ran


def losses(control):
    return [(event["step"], round(event["loss"], 4), event["best"]) for event in control.of("evaluated")]


@REPLICAS
def test_it_evaluates_every_so_many_steps_and_replica_0_tells(job, ran, replicas):
    found = ran(job(every=3), [9, 9, 5, 9, 9, 4, 9, 9, 6, 9], replicas)
    assert losses(found[0][1]) == [(3, 5, True), (6, 4, True), (9, 6, False)]
    assert [control.events for _, control in found[1:]] == [[]] * (replicas - 1)
    assert all(control.phases == [(3, "EVALUATE"), (6, "EVALUATE"), (9, "EVALUATE")] for _, control in found)


@REPLICAS
def test_patience_ends_the_run_after_the_same_step_everywhere(job, ran, replicas):
    curve = [5, 4, 4, 3, 3, 3.5, 1]  # a loss as low as the best one is no lower
    found = ran(job(every=1, patience=2), curve, replicas)
    assert [step for step, _ in found] == [6] * replicas
    assert found[0][1].events[-1] == {"event": "stopped_early", "step": 6, "waited": 2, "best": pytest.approx(3)}


def test_without_patience_a_rising_loss_ends_nothing(job, ran):
    ((step, control),) = ran(job(every=1), [1, 2, 3, 4, 5], 1)
    assert step == 5 and not control.of("stopped_early")


def test_a_loss_that_is_no_number_is_not_better_and_uses_up_patience(job, ran):
    ((step, _),) = ran(job(every=1, patience=2), [3, math.nan, math.nan, 1], 1)
    assert step == 3


def test_a_run_that_starts_with_no_number_finds_its_best_later(job, ran):
    ((_, control),) = ran(job(every=1), [math.nan, 3, 4], 1)
    assert [event["best"] for event in control.of("evaluated")] == [False, True, False]


def test_a_best_model_that_cannot_be_written_is_told_and_the_run_goes_on(job, ran):
    job = job(every=1, best=True)
    (job.run / "best").write_text("in the way")
    (job.run / f".best-new-{os.getpid()}").mkdir()
    ((step, control),) = ran(job, [3, 2, 4], 1)
    assert step == 3 and [event["step"] for event in control.of("best_failed")] == [1]
    assert "best cannot be written" in control.of("best_failed")[0]["reason"]


@REPLICAS
def test_the_best_model_is_kept_until_a_better_one_comes(job, ran, replicas):
    job = job(every=1, best=True)
    control = ran(job, [5, 3, 4, 6], replicas)[0][1]
    kept = control.of("best")
    assert [(event["step"], round(event["loss"], 4)) for event in kept] == [(1, 5), (2, 3)]
    assert kept[-1]["digest"] == digest.of_folder(job.run / "best") == digest.of_tensors({"step": torch.tensor([2])})
    assert [path.name for path in job.run.iterdir()] == ["best"]


def test_nothing_is_kept_where_none_was_asked_for(job, ran):
    job = job(every=1)
    assert not ran(job, [5, 3], 1)[0][1].of("best") and not list(job.run.iterdir())


@REPLICAS
@pytest.mark.parametrize(("every", "evaluated"), [(0, [5]), (2, [2, 4, 5]), (5, [5])])
def test_the_last_step_is_evaluated_once(job, ran, replicas, every, evaluated):
    job = job(every=every)
    found = ran(job, [5, 4, 3, 2, 1], replicas, end=True)
    assert [step for step, _, _ in losses(found[0][1])] == evaluated
    saved = found[0][1].of("saved")
    assert [event["digest"] for event in saved] == [digest.of_folder(job.run / "model")]
    assert [control.events for _, control in found[1:]] == [[]] * (replicas - 1)


def test_nothing_held_out_is_nothing_to_evaluate(job, ran):
    ((step, control),) = ran(job(held_out=(), every=1, patience=1), [1, 2, 3], 1, end=True)
    assert (step, [event["event"] for event in control.events]) == (3, ["saved"])


def test_text_is_told_in_bits_per_byte_beside_zlib(job, ran):
    event = ran(job(every=1), [2.0], 1)[0][1].of("evaluated")[0]
    assert event["tokens"] == 58 - 4
    assert event["bits_per_byte"] == pytest.approx((2.0 * 54 + 4 * math.log(50)) / math.log(2) / 100)
    assert event["zlib_bits_per_byte"] == 8 * 50 / 100


def test_samples_have_no_bits_per_byte(job, ran):
    event = ran(job(every=1, format="messages", objective="sft"), [2.0], 1)[0][1].of("evaluated")[0]
    assert "bits_per_byte" not in event and event["loss"] == 2.0


def test_prompts_are_answered_at_each_evaluation_and_the_sample_at_the_end(job, ran):
    job = job(every=2, prompts=["w9", "w10 w11"], prompt="w20")
    events = ran(job, [1, 1, 1, 1, 1], 2, end=True)[0][1].of("sample")
    assert [(event.get("step"), event["prompt"], event["text"]) for event in events] == [
        (2, "w9", "w9 w6"),
        (2, "w10 w11", "w10 w11 w6"),
        (4, "w9", "w9 w8"),
        (4, "w10 w11", "w10 w11 w8"),
        (5, "w9", "w9 w9"),
        (5, "w10 w11", "w10 w11 w9"),
        (None, "w20", "w20 w9"),
    ]


@REPLICAS
@pytest.mark.parametrize("every", [0, 2])
def test_the_model_before_the_first_step_is_told_and_never_the_best(job, told, replicas, every):
    job = job(every=every, best=bool(every))

    def replica(wire):
        model, control = Scripted([1, 9, 7, 8]), told()
        watch = Watch(job, model.task(), fixed_of(job, "held_out"), control)
        watch.enter(wire)
        model.step = 1
        watch.after(-1, 0)
        for model.step in range(2, 5):
            watch.after(model.step - 1, model.step)
        return control

    control = loopback.run(replicas, replica)[0]
    assert losses(control) == ([(0, 1, False), (2, 9, True), (4, 8, True)] if every else [])
    assert [event["step"] for event in control.of("best")] == ([2, 4] if every else [])


@REPLICAS
def test_an_evaluation_is_made_again_where_some_may_not_have_come_to_its_end(job, told, replicas):
    def replica(wire):
        model, control = Scripted([5, 9, 9]), told()
        watch = Watch(job, model.task(), fixed_of(job, "held_out"), control)
        watch.enter(wire)
        for model.step in (1, 2, 3):
            watch.after(model.step - 1, model.step)
        before = watch.state()
        watch.rewind(2)
        assert watch.state() == before  # that one is settled
        watch.rewind(3)
        watch.after(2, 3)
        assert watch.state() == before
        watch.after(2, 3)
        return control

    job = job(every=1, patience=5)
    control = loopback.run(replicas, replica)[0]
    assert losses(control) == [(1, 5, True), (2, 9, False), (3, 9, False), (3, 9, False)]
