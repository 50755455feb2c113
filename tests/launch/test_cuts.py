from samestep.launch.cuts import PATIENCE, TELL, Cuts

HOSTS = {0: "a", 1: "b", 2: "c", 3: "d"}


def say(cuts, kind, replica, peer, now=0.0, seconds=3.0, generation=1):
    cuts.said(replica, {"event": kind, "peer": peer, "seconds": seconds, "generation": generation}, now)


def cut_off(*replicas, of=HOSTS, now=3.0):
    cuts = Cuts(1)
    for replica in replicas:
        for other in of.keys() - set(replicas):
            say(cuts, "unreachable", other, replica, now)
            say(cuts, "unreachable", replica, other, now)
    return cuts


def test_a_host_is_told_of_once_and_given_up_after_its_time():
    cuts = cut_off(2)
    told = [cuts.judge(HOSTS, now, ends=True) for now in (3, 4, 5, 6, 7, 7.9, 8)]
    (event,) = [event for judgement in told for event in judgement.events]
    assert (event["event"], event["host"], event["replicas"], event["by"]) == ("unreachable", "c", [2], [0, 1, 3])
    assert event["seconds"] == TELL
    says = "host c (replica 2) is out of reach of replicas 0, 1, 3 for 5 s; after 8 s the others go on without it"
    assert event["reason"] == says
    assert [judgement.given_up for judgement in told[:-1]] == [{}] * 6
    assert told[-1].given_up == {2: "host c (replica 2) is out of reach of replicas 0, 1, 3 for 8 s and is given up"}


def test_the_time_runs_from_the_cut_and_not_from_the_report():
    cuts = Cuts(1)
    say(cuts, "unreachable", 0, 1, now=20.0, seconds=6.5)
    assert not cuts.judge({0: "a", 1: "b"}, 21.4, ends=True).given_up
    assert cuts.judge({0: "a", 1: "b"}, 21.6, ends=True).given_up.keys() == {1}


def test_one_that_is_reached_again_is_not_given_up_and_that_is_told():
    cuts = cut_off(2)
    cuts.judge(HOSTS, 5.0, ends=True)
    for other in (0, 1, 3):
        say(cuts, "reachable", other, 2)
        say(cuts, "reachable", 2, other)
    assert not cuts.concerned
    (event,) = cuts.judge(HOSTS, 6.0, ends=True).events
    assert (event["event"], event["reason"]) == ("reachable", "host c is reached again after 6 s")
    assert not cuts.judge(HOSTS, PATIENCE + 1, ends=True).events


def test_a_cut_that_is_mended_soon_is_not_told_of():
    cuts = cut_off(2)
    assert not cuts.judge(HOSTS, 4.0, ends=True).events
    for other in (0, 1, 3):
        say(cuts, "reachable", other, 2)
        say(cuts, "reachable", 2, other)
    assert not cuts.judge(HOSTS, 6.0, ends=True).events


def test_reports_of_another_generation_do_not_count():
    cuts = Cuts(2)
    say(cuts, "unreachable", 0, 1, generation=1)
    assert not cuts.concerned


def test_what_one_that_has_ended_has_said_does_not_count():
    cuts = Cuts(1)
    say(cuts, "unreachable", 2, 0)
    cuts.gone(2)
    assert not cuts.concerned


def test_those_that_wait_for_one_that_has_ended_are_told_that_it_is_over():
    """It has finished, or died, and the link was cut before they could hear of it."""
    cuts = Cuts(1)
    say(cuts, "unreachable", 0, 7, now=3.0)
    assert not cuts.judge(HOSTS, 7.0, ends=True).over
    late = cuts.judge(HOSTS, 8.0, ends=True)
    assert late.over and not late.given_up


def test_where_nobody_may_be_ended_it_is_only_told():
    cuts = cut_off(2)
    (event,) = cuts.judge(HOSTS, 5.0, ends=False).events
    assert "all wait for it, as run.silent says" in event["reason"]
    assert not cuts.judge(HOSTS, 100.0, ends=False).given_up


def test_all_replicas_of_a_host_are_given_up_with_one_sentence():
    hosts = {0: "a", 1: "a", 2: "a", 3: "b", 4: "b"}
    cuts = cut_off(3, 4, of=hosts)
    assert len(cuts.judge(hosts, 5.0, ends=True).events) == 1
    given_up = cuts.judge(hosts, 8.0, ends=True).given_up
    says = "host b (replicas 3, 4) is out of reach of replicas 0, 1, 2 for 8 s and is given up"
    assert given_up == {3: says, 4: says}
