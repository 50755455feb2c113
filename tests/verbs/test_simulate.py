"""samestep simulate, from the command line."""

import xml.etree.ElementTree as ElementTree

import pytest

from samestep.plan.failures import LLAMA3

FEW = ("--replicas", 12, "--days", 2, "--failures-per-device-day", 0.2, "--seeds", 3, "--price", 2, "--swing", 0.2)


def test_it_prints_a_line_a_policy_and_draws_a_picture(samestep, tmp_path):
    to = tmp_path / "run.svg"
    result = samestep("simulate", *FEW, "--picture", to)
    assert result.code == 0, result.err
    first, names, *rows = result.out.splitlines()
    assert first.startswith("12 replicas of 1 device(s) for 2 days, 3 seed(s); a loss somewhere every 10 h 0 min")
    assert names.split()[:2] == ["policy", "goodput"]
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == ["restart", "survivors"]
    assert sum("$" in row for row in rows) == 2
    assert ElementTree.parse(to).getroot().tag.endswith("svg")
    again = samestep("simulate", *FEW, "--picture", to)
    assert again.code == 2 and "is there already" in again.err


def test_json_says_what_was_assumed_and_the_same_seed_the_same(samestep):
    found, again = (samestep("simulate", *FEW, "--json").json for _ in range(2))
    assert found["policies"] == again["policies"]
    assert found["setup"]["lanes"] == 192 and found["setup"]["hazards"]["failures"] == 0.2
    for policy in ("restart", "survivors"):
        one = found["policies"][policy]
        assert len(one["runs"]) == 3 and one["summary"]["goodput"]["p5"] <= one["summary"]["goodput"]["p95"]
        assert sum(one["hours"].values()) == pytest.approx(12 * 48)
        assert 0 < one["runs"][0]["dollars"] < 12 * 48 * 2 * 3
    assert found["policies"]["survivors"]["summary"]["goodput"]["p50"] > found["expected"]["restart"]


def test_a_recipe_gives_replicas_lanes_and_holders(samestep, tiny):
    found = samestep("simulate", tiny, "--days", 1, "--policy", "survivors", "--json").json
    setup = found["setup"]
    assert (setup["replicas"], setup["lanes"], setup["copies"]) == (2, 8, 2)
    assert setup["hazards"]["failures"] == LLAMA3 and list(found["policies"]) == ["survivors"]
    more = samestep("simulate", tiny, "--days", 1, "--replicas", 4, "--json").json
    assert more["setup"]["replicas"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "needs a recipe or --replicas N"),
        (("--replicas", 4, "--policy", "hope"), "--policy hope is none of restart, survivors"),
        (("--replicas", 4, "--lanes", 2), "2 lanes are too few for 4 replicas"),
        (("--replicas", 4, "--step-seconds", 0), "cannot hold an exchange"),
    ],
)
def test_what_cannot_be_simulated_is_a_usage_error(samestep, arguments, said):
    result = samestep("simulate", *arguments)
    assert result.code == 2 and said in result.err
