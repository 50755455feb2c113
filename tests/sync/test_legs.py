"""When islands meet."""

from hypothesis import given
from hypothesis import strategies as st

from samestep.sync.legs import Legs, buckets, passed


@st.composite
def legs(draw):
    fragments, length = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    steps, together = draw(st.integers(1, 80)), draw(st.integers(0, 90))
    return Legs(fragments * length, fragments, draw(st.integers(0, length - 1)), steps, together)


@given(legs())
def test_after_the_first_steps_legs_have_one_length_but_for_a_short_last_one(terms):
    ends = [number + 1 for number in range(terms.steps) if terms.meets(number)]
    single = min(terms.together, terms.steps)
    assert ends[:single] == list(range(1, single + 1)) and ends[-1] == terms.steps
    assert ends[single:-1] == list(range(single + terms.length, terms.steps, terms.length))[: len(ends) - single - 1]


@given(legs())
def test_what_meets_has_set_off_once_in_its_leg_and_before(terms):
    away = None
    for number in range(terms.steps):
        if terms.leaves(number):
            assert away is None
            away = number
        if terms.meets(number):
            assert away is not None and number - away == (0 if terms.whole(number) else terms.overlap)
            away = None


@given(legs())
def test_fragments_take_turns_but_the_first_steps_and_the_last_leg_bring_all_together(terms):
    found = [terms.fragment(number) for number in range(terms.steps) if terms.meets(number)]
    single = min(terms.together, terms.steps)
    assert found[:single] == [None] * single and found[-1] is None
    assert found[single:-1] == [leg % terms.fragments for leg in range(len(found) - single - 1)]


@given(legs())
def test_commits_are_counted_by_legs(terms):
    commits, before = 0, -1
    for number in range(terms.steps):
        if terms.meets(number):
            commits += 1
            assert terms.commits(number + 1) == commits and terms.since(number + 1) == max(before, 0)
            before = number + 1
    assert (terms.commits(0), terms.since(0)) == (0, -1)


@given(st.integers(1, 8), st.integers(1, 30))
def test_fragments_are_all_buckets_once(fragments, count):
    parts = [bucket for number in range(fragments) for bucket in buckets(number, fragments, count)]
    assert parts == list(buckets(None, fragments, count)) == list(range(count))


@given(st.integers(0, 7), st.integers(-1, 40), st.integers(1, 9))
def test_a_multiple_has_passed_where_one_of_the_steps_was_one(every, since, steps):
    made = range(since + 1, since + 1 + steps)
    assert passed(every, since, since + steps) == any(every and number % every == 0 for number in made)
