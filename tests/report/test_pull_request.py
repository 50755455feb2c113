"""report.md: figures and words that Markdown does not turn into something else."""

import re

from samestep.report.page import Facts, Other
from samestep.report.pull_request import EVENTS, markdown
from samestep.report.read import read


def test_figures_words_and_the_link_are_there(made):
    text = markdown(Facts("harbour-1", read(made.lived(100)), "", []), "report.html")
    assert text.startswith("## harbour-1: finished\n")
    assert "| held-out loss | 2.1000 | 1.5000 bits a byte |" in text
    assert "- Of the replicas' time" in text and "1 checkpoint written, the last one after step 100." in text
    assert (
        "100 steps, 400 rows: 0 lost, 0 repeated" in text
        and "[All curves, recipe and environment](<report.html>)" in text
    )


def test_no_text_becomes_a_mark_a_link_or_html(made):
    probe = "[x](javascript:1) <img src=x> | `a` **b** @all #1 ![i](http://h/i.png)\n# head"
    events = [made.opened(), made.step(1), {"event": "silent", "step": 1, "reason": probe}]
    other = Other(probe, read([]), [(probe, probe, probe)], probe)
    text = markdown(Facts(probe, read(events), "", [], other, notes=[probe]), "report.html")
    bare = re.sub(r"\\.", "", text)
    assert not re.search(r"[<@`*!]|\]\(", bare.replace("[All curves, recipe and environment](<report.html>)", ""))
    assert "\n# head" not in text


def test_of_many_events_the_last_ones_are_named(made):
    trouble = [{"event": "silent", "step": n, "reason": f"why {n}"} for n in range(1, 31)]
    text = markdown(Facts("a", read([made.opened(), *trouble]), "", []), "r.html")
    assert f"{30 - EVENTS} earlier events are in the report." in text
    assert "why 30" in text and "why 20\n" not in text
