"""Who takes part: each rule by itself, then all of them under faults, and what an event costs."""

import time

import pytest

from samestep.recover import settle
from samestep.recover.protocol import (
    End,
    Event,
    Exited,
    Finished,
    Form,
    Gather,
    Joined,
    Kill,
    Returned,
    Room,
    Silent,
    Start,
    StopAsked,
    Ticked,
    Waiting,
)
from tests.recover.scripted import Run, dies, formed, only
from tests.recover.simulator import simulate

# The first generation


def test_the_first_generation_forms_when_all_have_joined_and_sets_itself_up() -> None:
    run = Run(3)
    assert run.says(Joined(2)) == run.says(Joined(0)) == run.says(Joined(0)) == []
    form = only(run.says(Joined(1)))
    assert (form.generation, form.members, form.to) == (1, (0, 1, 2), (0, 1, 2))
    assert (form.before, form.held, form.step, form.restore) == ((), -1, -1, True)


def test_who_dies_before_the_first_generation_is_replaced_a_few_times() -> None:
    run = Run(2, deaths=2)
    assert only(run.says(dies(0))).replica == 2
    assert only(run.says(dies(2))).replica == 3
    assert isinstance(only(run.says(dies(3))), End)


def test_who_does_not_join_in_time_is_killed_and_replaced() -> None:
    run = Run(2, join_patience=10.0)
    run.says(Joined(0))
    run.now = 10.0
    kill, start = run.says(Ticked())
    assert isinstance(kill, Kill) and kill.replica == 1
    assert isinstance(start, Start) and start.replica == 2
    assert only(run.says(Joined(1))).reason == "replica 1 is no part of generation 0; it is told to exit"
    assert only(run.says(Joined(2))).members == (0, 2)


# Where the survivors go on


def test_a_step_that_not_all_were_ready_for_is_computed_again() -> None:
    run = formed()
    assert run.says(dies(2)) == []
    run.waits(0, held=1, step=11, ready=True)
    form = only(run.waits(1, held=1, step=11))
    assert (form.generation, form.members, form.before, form.held, form.step) == (2, (0, 1), (0, 1, 2), 1, 11)
    assert form.reason == "replica 2 was killed by SIGKILL; 2 replicas go on and compute step 12 again"


def test_a_step_that_somebody_has_committed_is_kept() -> None:
    run = formed()
    run.says(dies(2))
    run.waits(0, held=1, step=12)
    form = only(run.waits(1, held=1, step=11, ready=True))
    assert (form.held, form.step, form.restore) == (1, 12, False)


def test_a_step_that_all_survivors_are_ready_for_is_kept_for_the_dead_may_have_committed_it() -> None:
    run = formed()
    run.says(dies(2))
    run.waits(0, held=1, step=11, ready=True)
    assert only(run.waits(1, held=1, step=11, ready=True)).step == 12


def test_survivors_whose_states_cannot_meet_end_the_run() -> None:
    run = formed()
    run.says(dies(2))
    run.waits(0, held=1, step=12)
    assert "mixed" in only(run.waits(1, held=1, step=11)).reason


def growing() -> Run:
    """Generation 2 of 0, 1, 2 and the joiner 3 is receiving its state at step 5."""
    run = formed(copies=1)
    assert isinstance(only(run.says(Joined(3))), Gather)
    assert only(run.waits(0, 1, 2, held=1, step=5)).members == (0, 1, 2, 3)
    return run


def test_a_joiner_that_had_not_all_is_a_joiner_again() -> None:
    run = growing()
    run.waits(3, held=-1, step=-1)
    form = only(run.waits(0, 1, 2, held=1, step=5, ready=True))
    assert (form.members, form.before, form.held, form.step) == ((0, 1, 2, 3), (0, 1, 2), 1, 5)


def test_a_joiner_that_was_ready_like_all_others_holds_the_new_division() -> None:
    run = growing()
    run.waits(3, held=-1, step=5, ready=True)
    form = only(run.waits(0, 1, 2, held=1, step=5, ready=True))
    assert (form.before, form.held, form.step) == ((0, 1, 2, 3), 2, 5)


def test_where_a_ready_joiner_died_the_old_division_serves() -> None:
    run = growing()
    run.says(dies(3))
    form = only(run.waits(0, 1, 2, held=1, step=5, ready=True))
    assert (form.before, form.held, form.step, form.restore) == ((0, 1, 2), 1, 5, False)


@pytest.mark.parametrize(
    ("copies", "dead", "restore"),
    [
        (1, [1], True),
        (2, [1], False),
        (2, [0, 2], False),
        (2, [1, 2], True),
        (2, [3, 0], True),
        (None, [0, 1, 2], False),
    ],
)
def test_it_is_restored_only_where_a_slice_has_no_living_holder(
    copies: int | None, dead: list[int], restore: bool
) -> None:
    run = formed(4, copies=copies)
    run.says(*map(dies, dead))
    form = only(run.waits(*(set(range(4)) - set(dead)), held=1, step=7))
    assert form.restore is restore and (form.before == ()) is restore


def test_a_division_of_which_all_slices_are_somewhere_is_whole() -> None:
    assert settle.whole((5, 6, 7), {5, 7}, 2) and not settle.whole((5, 6, 7), {5}, 2)
    assert not settle.whole((), {5}, None)


# Joining, replacing, leaving


def test_joiners_are_gathered_for_once_and_those_beyond_the_lanes_wait() -> None:
    run = formed(3, lanes=4)
    assert isinstance(only(run.says(Joined(8))), Gather)
    assert run.says(Joined(7)) == []
    assert only(run.waits(1, 0, 2, held=1, step=3)).members == (0, 1, 2, 7)
    assert run.says(Joined(9)) == []
    run.says(dies(0))
    assert only(run.waits(7, 2, 1, held=2, step=4)).members == (1, 2, 7, 8)


def test_replacements_come_with_a_growing_pause_and_a_limit() -> None:
    run = formed(5, replace=True, backoff=2.0, restarts=3)
    assert only(run.says(dies(0))).replica == 5
    assert run.says(dies(1)) == run.says(dies(2)) == run.says(dies(3)) == []
    for now, starts in [(1.9, 0), (2.0, 1), (5.9, 0), (6.0, 1), (1000.0, 0)]:
        run.now = now
        assert sum(isinstance(action, Start) for action in run.says(Ticked())) == starts


def test_nobody_is_started_where_there_is_no_room_until_there_is() -> None:
    run = formed(3, replace=True, backoff=0.0)
    assert run.says(Room(0), dies(0)) == run.says(dies(1)) == run.says(Ticked()) == []
    assert only(run.says(Room(1))).replica == 3
    assert run.says(Ticked()) == []
    assert only(run.says(Room(2))).replica == 4
    assert run.says(Ticked()) == []


def test_after_the_death_of_all_room_is_waited_for() -> None:
    run = formed(1, replace=True)
    assert run.says(Room(0), dies(0)) == run.says(Ticked()) == []
    assert isinstance(only(run.says(Room(1))), Start)


def test_those_that_a_run_begins_without_are_started_once_there_is_room() -> None:
    run = Run(1, short=2, backoff=0.0)
    assert run.says(Room(0), Joined(0), Ticked()) == []
    assert [action.replica for action in run.says(Room(5))] == [1, 2]


def test_without_replacement_the_death_of_all_ends_the_run() -> None:
    run = formed(2)
    run.says(dies(0))
    assert isinstance(only(run.says(dies(1))), End)


def test_after_the_death_of_all_the_first_to_join_sets_itself_up() -> None:
    run = formed(2, replace=True)
    run.says(dies(0), dies(1))
    form = only(run.says(Joined(2)))
    assert (form.members, form.restore) == ((2,), True)


def test_after_a_stop_nobody_is_started_or_let_in() -> None:
    run = formed(3, replace=True)
    run.says(StopAsked())
    assert run.says(dies(0)) == run.says(Joined(9)) == []
    assert only(run.waits(1, 2, held=1, step=3)).members == (1, 2)


def test_after_a_stop_a_joiner_that_had_not_all_stays_out() -> None:
    run = growing()
    run.says(StopAsked())
    run.waits(3, held=-1, step=-1)
    assert only(run.waits(0, 1, 2, held=1, step=5)).members == (0, 1, 2)


def test_an_error_that_comes_again_ends_the_run_with_its_reason() -> None:
    run = formed()
    assert run.says(Exited(1, "row 7 of a.txt is not UTF-8", fatal=True)) == [End("row 7 of a.txt is not UTF-8")]
    assert run.says(Joined(9)) == []


def test_a_step_that_kills_again_and_again_ends_the_run() -> None:
    run = formed(5, deaths=3)
    for replica in range(2):
        run.says(dies(replica))
        step = only(run.waits(*range(replica + 1, 5), held=run.membership.generation, step=7)).step
        assert step == 7
    run.says(dies(2))
    end = only(run.waits(3, 4, held=3, step=7))
    assert isinstance(end, End) and "3 times step 8 was not survived by all" in end.reason


def test_deaths_in_different_steps_do_not_end_the_run() -> None:
    run = formed(5, deaths=2)
    for replica in range(4):
        run.says(dies(replica))
        form = only(run.waits(*range(replica + 1, 5), held=run.membership.generation, step=7 + replica))
        assert isinstance(form, Form)


def test_the_run_is_done_when_all_have_finished() -> None:
    run = formed(2)
    run.says(Finished(0), dies(0))
    assert not run.membership.done
    run.says(Finished(1))
    assert run.membership.done


def test_a_loss_at_the_last_barrier_is_made_good_by_the_rest() -> None:
    run = formed(3)
    run.says(Finished(0), dies(1))
    assert only(run.waits(2, held=1, step=9)).members == (2,)


# Silence, fencing, lost messages


def test_a_silent_replica_is_killed_and_counts_as_lost_when_it_has_exited() -> None:
    run = formed(3)
    assert only(run.says(Silent(1, "replica 1 hangs"))) == Kill(1, "replica 1 hangs; it is killed")
    assert run.waits(0, 2, 1, held=1, step=3) == []
    assert only(run.says(dies(1))).members == (0, 2)


def test_nobody_goes_on_before_a_silent_replica_that_had_come_to_wait_is_dead() -> None:
    run = formed(3)
    run.waits(1, held=1, step=3)
    assert only(run.says(Silent(1, "replica 1 hangs"))) == Kill(1, "replica 1 hangs; it is killed")
    assert run.waits(0, 2, held=1, step=3) == []
    assert only(run.says(dies(1))).members == (0, 2)


@pytest.mark.parametrize("event", [Waiting(2, 1, 1, 3, True), Joined(2), Finished(2), Silent(2, "it hangs")])
def test_whoever_was_declared_lost_is_told_to_exit(event: Event) -> None:
    run = formed()
    run.says(dies(2))
    run.waits(0, 1, held=1, step=3)
    assert only(run.says(event)) == Kill(2, "replica 2 is no part of generation 2; it is told to exit")


def test_a_form_that_was_lost_is_sent_again_to_that_replica_only() -> None:
    run = formed()
    run.says(dies(2))
    form = only(run.waits(0, 1, held=1, step=3))
    again = only(run.says(Waiting(1, 1, 1, 3, False)))
    assert again.to == (1,) and (again.generation, again.members, again.step) == (2, form.members, form.step)
    run.waits(1, held=1, step=3)
    assert run.says(Waiting(1, 1, 1, 3, False)) == []


def test_old_and_doubled_messages_change_nothing() -> None:
    run = formed()
    run.says(dies(2))
    run.waits(0, 1, held=1, step=3)
    run.waits(0, 1, held=2, step=5)
    assert run.membership.generation == 3
    assert run.says(Waiting(0, 1, 1, 3, False)) == run.says(Joined(0)) == run.says(dies(2)) == []


def test_a_waiting_stands_for_a_joined_that_was_lost() -> None:
    run = Run(1)
    assert only(run.says(Waiting(0, -1, -1, -1, False))).members == (0,)


# A new coordinator


def returned(replica: int, generation: int = 7, step: int = 4, ready: bool = False) -> Returned:
    members = (3, 1, 2) if generation == 7 else (0, 3, 1, 2)
    return Returned(replica, generation, members, generation, members, step, ready)


def test_a_new_coordinator_goes_on_when_all_members_have_returned() -> None:
    run = Run(3, generation=7, number=4, copies=2)
    assert run.says(returned(1)) == run.says(returned(2, step=3, ready=True)) == run.says(Joined(4)) == []
    form = only(run.says(returned(3)))
    assert (form.generation, form.members, form.before, form.step) == (8, (3, 1, 2, 4), (3, 1, 2), 4)


def test_a_new_coordinator_fences_who_does_not_return_in_time_or_is_of_an_older_generation() -> None:
    run = Run(3, generation=7, number=4, copies=2, return_patience=5.0)
    assert run.says(returned(0, generation=6)) == run.says(returned(1), returned(3)) == []
    run.now = 5.0
    actions = run.says(Ticked())
    assert [action.replica for action in actions if isinstance(action, Kill)] == [2, 0]
    assert only([action for action in actions if isinstance(action, Form)]).members == (3, 1)
    assert isinstance(only(run.says(returned(2))), Kill)


def test_a_new_coordinator_waits_for_the_generation_that_the_journal_names() -> None:
    run = Run(3, generation=7, number=4)
    assert run.says(*(returned(replica, generation=6) for replica in (0, 1, 2, 3))) == []


def test_a_new_coordinator_remembers_who_exited_before_it_returned() -> None:
    run = Run(3, generation=7, number=4)
    assert run.says(dies(2)) == []
    assert only(run.says(returned(2))).replica == 2


# All rules together


@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_no_fault_breaks_a_law(first: int) -> None:
    """scripts/simulate --seed N replays one."""
    broken = [outcome for outcome in map(simulate, range(first, first + 250)) if outcome.law]
    assert not broken, broken[0]


def test_an_event_costs_less_than_a_millisecond_with_16384_replicas() -> None:
    count = 16_384
    run = Run(count, lanes=2 * count, copies=2, replace=True, restarts=count)
    events: list[Event] = [Joined(replica) for replica in range(count)]
    events += [dies(5), Joined(count), Ticked(), dies(9)]
    left = [replica for replica in range(count) if replica not in (5, 9)]
    events += [Waiting(replica, 1, 1, 3, True) for replica in left]
    events += [Waiting(replica, 1, 1, 3, True) for replica in left]  # all Forms were lost
    events += [Waiting(replica, 2, 1, 4, False) for replica in [*left, count]]
    start = time.process_time()
    for event in events:
        run.says(event)
    assert run.membership.generation == 3 and len(run.membership.members) == count - 1
    assert (time.process_time() - start) / len(events) < 0.5e-3
