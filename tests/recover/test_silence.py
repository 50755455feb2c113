from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.recover.silence import LONG, WAITS, Look, Patience, diagnose, follow

PATIENCE = Patience()
PHASES = ["data", "forward", "backward", "exchange", "update", "evaluate", "save"]


def look(step, phase, since=0.0, state="S", cpu=0.0, switches=5):
    return Look(step, phase, since, state, cpu, switches)


def watch(looks, every=1.0, patience=PATIENCE, view=None, start=0.0):
    """The view after looks, each a dict by rank, and the findings after each."""
    found = []
    for number, seen in enumerate(looks):
        view = follow(view, start + number * every, seen, patience)
        found.append(diagnose(view, patience))
    return view, found


def first(found, kind):
    """When and what is first found, with all that are found then."""
    for at, findings in enumerate(found):
        if findings:
            assert {f.kind for f in findings} == {kind}
            return at, findings
    return None, []


def frozen(**ranks):
    """A minute and a half of looks at replicas that stay as they are."""
    return [{int(name[1:]): seen for name, seen in ranks.items()}] * 90


def worked(n, step, phase, since=0.0, share=1.0):
    return look(step, phase, since, state="S", cpu=n * share)


def usual(ranks=3):
    """Looks at ten steps that went well; each replica is met in each phase of the loop, which takes a second."""
    phases = PHASES[:5]
    return [
        {rank: look(1 + n // 5, phases[n % 5], n - 0.5, "R", cpu=0.5 * n) for rank in range(ranks)} for n in range(50)
    ]


def test_a_stopped_replica_is_named_after_two_seconds_and_those_that_wait_for_it_are_not():
    _, found = watch(frozen(r0=look(7, "exchange"), r1=look(7, "exchange"), r2=look(7, "backward", state="T")))
    at, (finding,) = first(found, "stopped")
    assert (at, finding.replica, finding.fence) == (2, 2, True)
    assert finding.sentence == (
        "replica 2 is stopped (SIGSTOP or a debugger) in step 7, backward, for 2 s: it is ended, the others go on"
    )


def test_one_stopped_in_an_exchange_is_named_too():
    _, found = watch(frozen(r0=look(7, "exchange"), r1=look(7, "exchange", state="t")))
    assert [f.replica for f in first(found, "stopped")[1]] == [1]
    assert all(f.replica == 1 for findings in found for f in findings)


def test_one_that_goes_on_between_two_looks_is_not_stopped():
    looks = [{0: look(7, "exchange", state="T", switches=n), 1: worked(n, 7, "forward")} for n in range(50)]
    assert not any(watch(looks)[1])


def test_one_that_was_slow_and_is_stopped_is_named_once():
    view, _ = watch(usual())
    waiting = look(12, "exchange", 50.0, cpu=30.0)
    looks = [{0: waiting, 1: worked(n + 40, 12, "forward", 50.0)} for n in range(10)]
    looks += [{0: waiting, 1: look(12, "forward", 50.0, "T", cpu=49.5)}] * 4
    assert [[f.kind for f in findings] for findings in watch(looks, view=view, start=50.0)[1]][-2:] == [["stopped"]] * 2


def test_where_all_are_stopped_that_is_meant_and_none_is_ended_for_a_minute():
    _, found = watch(frozen(r0=look(7, "exchange", state="T"), r1=look(7, "data", state="T")))
    at, findings = first(found, "stopped")
    assert at == 2 and not any(f.fence for f in findings)
    assert "SIGCONT" in findings[0].sentence
    assert next(n for n, findings in enumerate(found) if any(f.fence for f in findings)) == 60


@pytest.mark.parametrize("phase", ["data", "forward", "backward"])
def test_a_replica_that_sleeps_where_it_waits_for_nobody_is_stuck_after_five_seconds(phase):
    _, found = watch(frozen(r0=look(7, "exchange"), r1=look(7, phase), r2=look(7, "exchange")))
    at, (finding,) = first(found, "stuck")
    assert (at, finding.replica, finding.fence) == (5, 1, True)
    assert finding.sentence == (
        f"replica 1 sleeps and uses no processor in step 7, {phase}, for 5 s: it is ended, the others go on"
    )
    assert all(f.replica == 1 for findings in found for f in findings)


def test_a_replica_that_waits_for_a_disk_is_told_so():
    _, found = watch(frozen(r0=look(7, "data", state="D")))
    assert first(found, "stuck")[1][0].sentence == (
        "replica 0 waits for a disk or a file server in step 7, data, for 5 s: it is ended"
    )


@pytest.mark.parametrize("phase", sorted(LONG))
@pytest.mark.parametrize("state", ["S", "D"])
def test_start_save_and_end_may_sleep_for_a_minute(phase, state):
    _, found = watch(frozen(r0=look(7, phase, state=state), r1=look(7, "exchange")))
    at, findings = first(found, "deadlocked" if phase == "start" else "stuck")
    assert at == (5 if phase == "done" and findings[0].replica == 1 else 60)


def test_a_thread_that_only_beats_does_not_hide_a_stuck_replica():
    looks = [{0: look(7, "data", cpu=round(0.002 * n, 2)), 1: look(7, "exchange")} for n in range(20)]
    assert first(watch(looks)[1], "stuck")[0] == 5


def test_one_that_wants_a_processor_and_gets_none_is_not_stuck():
    _, found = watch(frozen(r0=look(7, "data", state="R"), r1=look(7, "forward", state="R")))
    assert not any(found)


def test_alone_there_is_nobody_to_wait_for():
    _, found = watch(frozen(r0=look(7, "exchange")))
    assert first(found, "stuck")[0] == 5
    _, found = watch(frozen(r0=look(7, "exchange"), r1=look(7, "done", state="S")))
    assert first(found, "stuck")[0] == 5


@pytest.mark.parametrize("phase", sorted(WAITS - LONG))
def test_all_in_one_place_of_waiting_are_deadlocked_and_none_is_blamed(phase):
    _, found = watch(frozen(r0=look(7, phase), r1=look(7, phase), r2=look(7, phase)))
    at, (finding,) = first(found, "deadlocked")
    assert (at, finding.replica, finding.fence) == (5, None, True)
    assert f"replicas 0, 1, 2 in step 7, {phase}: none stands apart" in finding.sentence


def test_of_all_that_wait_the_one_that_stands_apart_is_blamed():
    _, found = watch(frozen(r0=look(7, "exchange"), r1=look(7, "exchange"), r2=look(7, "update")))
    _, (finding,) = first(found, "deadlocked")
    assert (finding.replica, finding.phase) == (2, "update")
    assert finding.sentence == (
        "all replicas wait for one another for 5 s, replicas 0, 1 in step 7, exchange; replica 2 in step 7, update: "
        "replica 2 stands apart, it is ended, the others go on"
    )


def test_of_two_that_wait_the_one_behind_is_blamed():
    _, found = watch(frozen(r0=look(8, "exchange"), r1=look(7, "update")))
    assert [f.replica for f in first(found, "deadlocked")[1]] == [1]
    _, found = watch(frozen(r0=look(7, "update"), r1=look(8, "exchange")))
    assert [f.replica for f in first(found, "deadlocked")[1]] == [0]


def test_all_apart_is_no_ones_fault():
    _, found = watch(frozen(r0=look(8, "exchange"), r1=look(7, "update"), r2=look(7, "exchange")))
    assert [f.replica for f in first(found, "deadlocked")[1]] == [None]


def loop(phase="forward", step=12, since=50.0, **longest):
    """After a usual time: replica 1 works without end, the others wait for it in step 12."""
    view, found = watch(usual())
    assert not any(found)
    view = replace(view, longest=dict(view.longest) | longest)
    looks = [
        {
            0: look(12, "exchange", since, cpu=30.0),
            1: worked(n + 40, step, phase, since),
            2: look(12, "exchange", since, cpu=30.0),
        }
        for n in range(90)
    ]
    return watch(looks, view=view, start=since)[1]


def test_one_that_works_while_others_wait_is_slow_first_and_an_endless_loop_after_a_minute():
    found = loop()
    at, (finding,) = first(found, "slow")
    assert (at, finding.replica, finding.fence) == (5, 1, False)
    assert finding.sentence == (
        "replica 1 works in step 12, forward, for 5 s: replicas 0, 2 wait for it, and nothing is done"
    )
    assert [f.kind for f in found[59]] == ["slow"]
    (ended,) = found[60]
    assert (ended.kind, ended.replica, ended.fence) == ("spinning", 1, True)
    assert "works without end, where 1.0 s were the longest so far, in step 12, forward, for 60 s" in ended.sentence


def test_a_loop_in_update_is_told_from_those_that_wait_there():
    since = 50.0
    view, _ = watch(usual())
    waiting = look(12, "update", since, cpu=30.0)
    looks = [{0: waiting, 1: worked(n + 40, 12, "update", since), 2: waiting} for n in range(20)]
    at, (finding,) = first(watch(looks, view=view, start=since)[1], "slow")
    assert finding.replica == 1 and at <= 8


def test_the_last_to_come_to_an_exchange_is_not_to_blame_for_it():
    view, _ = watch(usual())
    waiting = look(12, "exchange", 50.0, cpu=30.0)
    looks = [{0: waiting, 1: worked(n + 40, 12, "save", 50.0), 2: waiting} for n in range(20)]
    looks.append({0: waiting, 1: worked(60, 12, "exchange", 70.0), 2: waiting})
    assert not any(watch(looks, view=view, start=50.0)[1])


@pytest.mark.parametrize("phase", ["start", "save", "evaluate"])
def test_evaluation_saving_and_start_may_work_for_long(phase):
    assert not any(loop(phase, step=11)[:60])


def test_others_may_be_used_to_waiting_but_not_for_more_than_a_minute():
    assert first(loop(exchange=2.0), "slow")[0] == 10
    assert first(loop(exchange=100.0, forward=100.0), "slow")[0] == 60


def test_how_long_phases_take_is_known_after_a_suspension_too():
    assert first(loop(since=1000.0), "slow")[0] == 5


def test_one_that_waits_busily_is_not_to_blame():
    view, _ = watch(usual())
    looks = [
        {r: worked(n + 40, 12, phase, 50.0) for r, phase in enumerate(("update", "exchange", "forward", "exchange"))}
        for n in range(20)
    ]
    assert [f.replica for f in first(watch(looks, view=view, start=50.0)[1], "slow")[1]] == [2]


@pytest.mark.parametrize("other", [look(12, "evaluate", 50.0, "R"), look(11, "update", 50.0)])
def test_who_is_busy_elsewhere_or_behind_does_not_wait_for_one(other):
    view, _ = watch(usual())
    view = replace(view, longest=dict(view.longest) | {"evaluate": 1.0})
    looks = [{0: replace(other, cpu=30.0), 1: worked(n + 40, 12, "update", 50.0)} for n in range(20)]
    assert not any(watch(looks, view=view, start=50.0)[1])


def test_a_first_step_may_be_long():
    looks = [{0: look(1, "exchange", 1.0), 1: worked(n, 1, "forward", 1.0)} for n in range(200)]
    _, found = watch(looks)
    assert not any(found[:60])
    assert not any(f.fence for findings in found for f in findings)


def test_a_phase_that_is_always_long_is_not_spinning():
    view, _ = watch(usual())
    view = replace(view, longest=dict(view.longest) | {"forward": 30.0})
    looks = [{0: worked(n + 40, 12, "forward", 50.0), 1: look(12, "exchange", 50.0)} for n in range(600)]
    found = watch(looks, view=view, start=50.0)[1]
    assert {f.kind for findings in found[:600] for f in findings} == {"slow"}


def test_phases_too_short_to_be_met_are_known_to_be_short():
    looks = [{0: look(n + 1, "data", n, cpu=float(n)), 1: look(n + 1, "data", n, cpu=float(n))} for n in range(4)]
    view, _ = watch(looks)
    assert view.longest["exchange"] == view.longest["forward"] == 1.0


@pytest.mark.parametrize("state", ["S", "T"])
def test_a_host_that_was_suspended_forgets(state):
    looks = [{0: look(7, "data", state=state), 1: look(7, "data", state=state), 2: look(7, "exchange")}] * 2
    view, found = watch(looks)
    assert not any(found)
    _, found = watch(looks, view=view, start=3600.0)
    assert not any(found)


def test_a_replica_started_again_begins_anew():
    looks = [{0: look(7, "data", cpu=9.0), 1: look(7, "exchange")}] * 4
    view, _ = watch(looks)
    again = [{0: look(7, "data", cpu=0.01), 1: look(7, "exchange")}] * 4
    assert not any(watch(again, view=view, start=4.0)[1])


@st.composite
def little_processor(draw):
    """Replicas that share a fifth of a processor: those that work get at least 25 ms a second, whatever their state is
    when they are met; those that wait use none, but are woken when they are stopped and go on. Looks are up to two
    seconds apart. Phases last up to ten looks.
    """
    size, stops = draw(st.integers(2, 5)), draw(st.booleans())
    states = ("S", "R", "T", "D") if stops else ("S", "R", "D")
    step, lasts = draw(st.integers(1, 3)), dict.fromkeys(range(size), 0)
    phase, since, cpu, switches = (dict.fromkeys(range(size), v) for v in ("data", 0.0, 0.0, 0))
    at, looks = 0.0, []
    for _ in range(draw(st.integers(5, 60))):
        seconds = draw(st.floats(0.5, 2.0))
        at += seconds
        seen = {}
        for rank in range(size):
            waits = phase[rank] == "exchange"
            cpu[rank] += 0.0 if waits else max(0.02, draw(st.floats(0.025, 0.2)) * seconds)
            switches[rank] += draw(st.integers(1, 9))
            lasts[rank] += 1
            if not waits and lasts[rank] >= draw(st.integers(1, 10)):
                phase[rank] = PHASES[PHASES.index(phase[rank]) + 1]
                since[rank], lasts[rank] = at, 0
            state = draw(st.sampled_from(states if not waits else ("S", "T") if stops else ("S",)))
            seen[rank] = Look(step, phase[rank], since[rank], state, cpu[rank], switches[rank])
        looks.append((at, seen))
        if set(phase.values()) == {"exchange"}:
            step, phase, since = step + 1, dict.fromkeys(phase, "data"), dict.fromkeys(since, at)
    return looks


@given(little_processor())
def test_a_fifth_of_a_processor_ends_nobody_and_blames_nobody_who_waits(looks):
    view = None
    for at, seen in looks:
        view = follow(view, at, seen, PATIENCE)
        for finding in diagnose(view, PATIENCE):
            assert finding.kind == "slow" and not finding.fence
            assert seen[finding.replica].phase != "exchange"


look_of = st.builds(
    Look,
    step=st.integers(6, 8),
    phase=st.sampled_from(PHASES),
    since=st.just(0.0),
    state=st.sampled_from("SRDTt"),
    cpu=st.just(0.0),
    switches=st.just(0),
)


@given(st.dictionaries(st.integers(0, 5), look_of, min_size=2), st.integers(0, 90))
def test_who_waits_is_not_blamed_while_another_does_not_and_each_is_named_once(looks, seconds):
    _, found = watch([looks] * (seconds + 1))
    ranks = [finding.replica for finding in found[-1]]
    assert len(set(ranks)) == len(ranks)
    if any(seen.phase not in WAITS for seen in looks.values()):
        assert not any(f.phase in WAITS for f in found[-1] if f.kind in ("stuck", "deadlocked"))
    assert all(f.seconds <= seconds for f in found[-1])


@given(st.dictionaries(st.integers(0, 5), look_of, min_size=1), st.lists(st.floats(3.1, 1e5), min_size=1, max_size=9))
def test_an_observer_that_seldom_runs_says_nothing(looks, pauses):
    view, at = None, 0.0
    for pause in pauses:
        at += pause
        view = follow(view, at, looks, PATIENCE)
        assert diagnose(view, PATIENCE) == []


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(PHASES)), min_size=2, max_size=20))
def test_replicas_that_go_on_are_never_named(lines):
    looks = [{0: look(step, phase, n), 1: look(step, phase, n)} for n, (step, phase) in enumerate(lines)]
    assert not any(watch(looks)[1])


def test_where_a_link_is_cut_waiting_proves_nothing_but_who_is_stopped_is_stopped():
    view, found = watch(frozen(r0=look(7, "exchange"), r1=look(7, "exchange"), r2=look(7, "update"))[:30])
    assert {f.kind for f in found[-1]} == {"deadlocked"}
    assert diagnose(view, PATIENCE, cut={0, 1}) == diagnose(view, PATIENCE, cut={0, 2}) == []
    view, _ = watch(frozen(r0=look(7, "exchange"), r1=look(7, "forward"), r2=look(7, "exchange", state="T"))[:30])
    assert {(f.kind, f.replica) for f in diagnose(view, PATIENCE, cut={0, 2})} == {("stuck", 1), ("stopped", 2)}
    assert {(f.kind, f.replica) for f in diagnose(view, PATIENCE, cut={0, 1})} == {("stopped", 2)}
