"""A schedule of faults is a function of its seed, and none of them asks for what cannot be."""

from collections import Counter
from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from samestep.recover.faults import DAMAGES, ENDS, KINDS, Scope, schedule, victims, words

SCOPE = Scope(steps=24, replicas=3, most=8, checkpoint_every=6)
seeds = st.integers(0, 2**63)


@st.composite
def scopes(draw) -> Scope:
    steps = draw(st.integers(4, 200))
    most = draw(st.integers(1, 16))
    return Scope(
        steps,
        draw(st.integers(1, most)),
        most,
        checkpoint_every=draw(st.integers(0, steps)),
        ends_silent=draw(st.booleans()),
    )


@given(seeds, scopes(), st.integers(0, 12))
def test_a_seed_gives_one_schedule(seed, scope, count):
    assert schedule(seed, scope, count) == schedule(seed, scope, count)
    assert len(schedule(seed, scope, count)) == count


def test_seeds_give_different_schedules():
    assert len({schedule(seed, SCOPE, 5) for seed in range(100)}) == 100


@given(seeds, scopes(), st.integers(1, 12))
@example(987, Scope(4, 2, 2, checkpoint_every=0, ends_silent=False), 6)  # a delay of 0.9996 was rounded to 1
def test_faults_come_in_the_order_of_time_within_the_run(seed, scope, count):
    faults = schedule(seed, scope, count)
    instants = [(fault.step, fault.delay) for fault in faults]
    assert instants == sorted(instants)
    assert all(0 <= fault.step < scope.steps and 0 <= fault.delay < 1 for fault in faults)


@given(seeds, scopes(), st.integers(1, 12))
def test_a_checkpoint_is_damaged_only_after_one_was_due(seed, scope, count):
    for fault in schedule(seed, scope, count):
        if fault.kind in DAMAGES:
            assert fault.step > scope.checkpoint_every > 0


@given(seeds, scopes(), st.integers(1, 12))
def test_a_disk_is_full_when_a_checkpoint_is_due_next_and_not_at_the_end(seed, scope, count):
    for fault in schedule(seed, scope, count):
        if fault.kind == "full":
            assert (fault.step + 1) % scope.checkpoint_every == 0 and fault.step < scope.steps - 2


@given(seeds, scopes(), st.integers(1, 12))
def test_what_cannot_befall_the_run_is_left_out(seed, scope, count):
    kinds = {fault.kind for fault in schedule(seed, scope, count)}
    assert not (kinds & {"torn", "flip", "full"} and not scope.checkpoint_every)
    assert not ("two" in kinds and scope.replicas == 1)
    assert not ("hang" in kinds and not scope.ends_silent)


@given(seeds, st.integers(1, 24))
def test_no_kind_comes_again_before_all_have_come(seed, count):
    found = Counter(fault.kind for fault in schedule(seed, SCOPE, count))
    assert max(found.values()) - min(found[kind] for kind in KINDS) <= 1


@given(seeds, st.integers(1, 24))
def test_no_two_strike_after_the_same_step_while_there_are_others(seed, count):
    steps = [fault.step for fault in schedule(seed, SCOPE, count, ["kill"])]
    assert len(set(steps)) == count


@given(seeds, scopes())
def test_a_run_is_resumed_on_another_number_of_replicas_where_there_is_one(seed, scope):
    for fault in schedule(seed, scope, 8):
        assert 1 <= fault.replicas <= scope.most
        assert fault.replicas != scope.replicas or scope.most == 1


@given(seeds, st.integers(1, 8))
def test_victims_are_among_the_living_and_each_once(seed, living):
    for fault in schedule(seed, SCOPE, 8):
        struck = victims(fault, living)
        assert set(struck) <= set(range(living)) and len(set(struck)) == len(struck)
        wanted = {"two": min(2, living)} | dict.fromkeys([*ENDS, "full"], living)
        assert len(struck) == wanted.get(fault.kind, 1)


def test_a_fault_is_said_with_its_numbers():
    (halt,) = schedule(1, SCOPE, 1, ["halt"])
    assert words(replace(halt, replicas=5)) == "all killed; the run is resumed on 5"
