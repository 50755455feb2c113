"""The report in a real browser: no error, no request, nothing that data could make it do."""

import json
import re
from html import escape
from html.parser import HTMLParser

import pytest

from samestep.report.page import MOST_EVENTS, Facts, Other, page, policy
from samestep.report.read import read

LIMIT = 1_500_000  # bytes of a report
PROBES = (
    "<script>window.hit = 1</script>",
    "</script><script>window.hit = 1</script>",
    "</style></title><img src=x onerror='window.hit = 1'>",
    '"><svg onload="window.hit = 1"><image href=\'http://127.0.0.1:9/a.png\'/></svg>',
    "'-alert(1)-' javascript:window.hit=1 {{ 7 * 7 }} {% include 'x' %}",
    "<!--<script> <a href='http://127.0.0.1:9/'>x</a> ]]> &lt;b&gt; \u2028\u2029 \ud800",
)


def facts(name, events, **more):
    return Facts(name, read(events), more.pop("recipe", "steps: 100\n"), more.pop("changed", []), **more)


@pytest.fixture
def shown(browser, tmp_path):
    def shown(facts, *asked, **more):
        (tmp_path / "report.html").write_text(page(facts), encoding="utf-8", errors="replace")
        return browser(tmp_path / "report.html", *asked, **more)

    return shown


@pytest.mark.parametrize(
    ("width", "dark", "media"),
    [(1280, False, ""), (1280, True, ""), (390, False, ""), (390, True, ""), (794, False, "print")],
)
def test_it_is_shown_without_an_error_or_a_request(made, shown, width, dark, media):
    seen = shown(facts("harbour", made.lived(300)), width=width, dark=dark, media=media)
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith("file:")] == [] and len(seen.requests) == 1
    assert seen.tab.value("document.documentElement.scrollWidth") <= width  # nothing sticks out at the side
    paper = seen.tab.value("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", paper))) < 60) == dark
    assert seen.picture.stat().st_size > 20_000


def test_one_cursor_moves_through_all_charts(made, shown):
    seen = shown(facts("harbour", made.lived(100)))
    outputs = "[...document.querySelectorAll('output.now')].map(each => each.textContent)"
    before = seen.tab.value(outputs)
    seen.tab.value("document.getElementById('curves').focus({preventScroll: true})")
    where = "document.querySelector('.panel.loss .plot').getBoundingClientRect()"
    x, y, width = (seen.tab.value(f"{where}.{key}") for key in ("x", "y", "width"))
    seen.tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + width * 9 / 99, y=y + 9)
    assert seen.tab.value("document.getElementById('where').textContent") == "step 10"
    after = seen.tab.value(outputs)
    assert after[0] == "2.4000" and after != before
    rules = seen.tab.value(
        "[...document.querySelectorAll('.cursor')].map(e => e.getAttribute('visibility') + e.x1.baseVal.value)"
    )
    assert len(rules) == 7 and len(set(rules)) == 1 and rules[0].startswith("visible90.9")
    seen.tab.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    assert seen.tab.value("document.getElementById('where').textContent") == "step 11"
    assert seen.errors == []


def probed(made, probe):
    """Facts with a probe in every text that data, hosts, errors or people give."""
    source = {"corpus": probe, "format": probe, "sequences": 1, "held_out_sequences": 1, "skipped": 0}
    events = [
        made.opened(
            sources={probe: source}, state=probe, state_reason=probe, rows_digest=probe, versions={probe: probe}
        )
    ]
    events += [made.formed(2), *(made.started(rank, [4 * rank, 4 * rank + 4], probe + str(rank)) for rank in (0, 1))]
    events[-1]["kernels"] = events[-2]["kernels"] = {probe: probe}
    events += [made.step(n) | {"digest": probe} for n in range(1, 9)]
    events += [made.spent(0, 8, 8, slow=40.0), made.spent(1, 8, 8)]
    events += [{"event": kind, "step": 8, "reason": probe} for kind in ("silent", "save_failed", "journal_failed")]
    events += [{"event": "checkpoint", "step": 8, "refused": probe, "folder": probe}]
    events += [{"event": "not_finite", "step": 8, "lane": 1, "layer": probe}, made.formed(1, 8, 2, probe)]
    events += [{"event": "sample", "prompt": probe, "text": probe}, {"event": "saved", "digest": probe}]
    events += [{"event": "ended", "time": 1.7e9, "reason": probe, "exit_code": 4}]
    other = Other(probe, read(made.lived(8)), [(probe, probe, probe)], probe)
    rows = [(probe, probe, probe)]
    return facts(probe, events, recipe=probe, changed=rows, other=other, notes=[probe])


@pytest.mark.parametrize("probe", PROBES, ids=range(len(PROBES)))
def test_a_script_in_any_text_stays_text(made, shown, probe):
    seen = shown(probed(made, probe))
    assert seen.tab.value("typeof window.hit") == "undefined" and seen.errors == []
    assert seen.requests == [seen.tab.value("location.href")]
    assert seen.tab.value("document.querySelectorAll('script').length") == 2
    assert seen.tab.value("document.querySelectorAll('img, image, a, iframe, link, object, embed, form').length") == 0
    handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    assert seen.tab.value(handlers) == []
    text = seen.tab.value("document.body.textContent")
    assert text.count(probe.replace("\ud800", "?")) >= 20


@pytest.mark.parametrize(
    "attempt",
    [
        "document.body.appendChild(document.createElement('script')).textContent = 'window.hit = 1'",
        "document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/a.png onerror=window.hit=1>')",
        "document.body.insertAdjacentHTML('beforeend', '<p style=\"color:red\">')",
        "fetch('http://127.0.0.1:9/').catch(() => 0)",
        "document.body.insertAdjacentHTML('beforeend', '<iframe src=http://127.0.0.1:9/></iframe>')",
    ],
    ids=["script", "image", "style", "fetch", "frame"],
)
def test_what_got_in_all_the_same_would_be_refused_by_the_policy(made, shown, attempt):
    seen = shown(facts("harbour", made.lived(10)))
    seen.tab.value(
        "window.refused = []; addEventListener('securitypolicyviolation', e => refused.push(e.violatedDirective))"
    )
    seen.tab.value(attempt)
    seen.tab.call("Runtime.evaluate", expression="new Promise(done => setTimeout(done, 200))", awaitPromise=True)
    assert seen.tab.value("window.refused.length") >= 1 and seen.tab.value("typeof window.hit") == "undefined"


@pytest.mark.slow
@pytest.mark.timeout(900)  # some ten seconds; minutes where others fill the machine
def test_a_run_of_a_hundred_thousand_steps_is_no_larger_than_a_page(made):
    html = page(facts("long", made.lived(100_000)))
    assert len(html.encode()) < LIMIT / 3
    assert "100,000" in html


def test_a_run_of_ten_thousand_troubles_is_no_larger_either(made):
    trouble = [
        {"event": "save_failed", "step": n, "reason": f"{n}: no space left on the device"} for n in range(10_000)
    ]
    html = page(facts("unlucky", [made.opened(), *map(made.step, range(1, 10_000)), *trouble]))
    assert len(html.encode()) < LIMIT and html.count('<tr class="trouble">') == MOST_EVENTS


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_that_has_hardly_begun_has_a_report(made, count):
    html = page(facts("young", [made.opened(), *map(made.step, range(1, count + 1))]))
    assert "not finished" in html and ("Loss" in html) == (count > 0)


def test_nan_and_infinite_losses_leave_a_gap(made):
    steps = [made.step(n, loss=None if 3 < n < 7 else 2.0) for n in range(1, 11)]
    html = page(facts("nan", [made.opened(), *steps]))
    numbers = json.loads(html.split('id="numbers">')[1].split("</script>")[0])["panels"]["loss"][0]
    assert numbers["y"][3:6] == [None] * 3 and numbers["v"][3:6] == [""] * 3 and numbers["v"][6] == "2.0000"


class Tags(HTMLParser):
    """Every tag is closed by its own."""

    VOID = ("meta", "input", "br", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.styled = [], []

    def handle_starttag(self, tag, attributes):
        self.open += [tag] if tag not in self.VOID else []
        self.styled += [value for name, value in attributes if name == "style"]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_tags_are_closed_and_none_has_a_style_of_its_own(made):
    """The policy would refuse such a style in silence."""
    tags = Tags()
    tags.feed(page(facts("harbour", made.lived(20), changed=[("a", "b", "c")])))
    assert tags.open == [] and tags.styled == []


def test_the_policy_forbids_all_that_it_does_not_name():
    found = dict(part.split(" ", 1) for part in policy("a{}", "1").split("; "))
    assert found["default-src"] == "'none'" and found["base-uri"] == "'none'" and found["form-action"] == "'none'"
    assert found["script-src"] == "'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='"
    assert "unsafe" not in policy("a{}", "1")


def test_another_run_stands_behind_and_beside(made):
    other = Other(
        "before & after", read(made.lived(60)), [("optimizer.clip", "1.0", "none")], "journals: 4 steps equal."
    )
    html = page(facts("harbour", made.lived(100), other=other))
    assert f"loss of {escape(other.name)}" in html and "optimizer.clip" in html and "journals: 4 steps equal." in html
