"""samestep report RUN: from the command line and at the end of a run."""

import json
import subprocess
import sys
import urllib.request
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from samestep.errors import DataError, RecipeError, VerifyError
from samestep.recipe.schema import Optimizer, Recipe
from samestep.recover import journal
from samestep.recover.journal import Journal
from samestep.verbs import report as verb
from samestep.verbs.report import report, reported

TINY = Path("recipes/tiny.yaml").resolve()
STEP = {
    "event": "step",
    "loss": 2.0,
    "gradient_norm": 1.0,
    "learning_rate": 0.1,
    "tokens": 8,
    "epoch": 0,
    "seconds": 0.1,
}


def a_run(folder, recipe=None, steps=3, loss=2.0):
    from samestep.recipe.load import dump

    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(recipe or Recipe(steps=3)))
    with Journal(folder / "journal.jsonl") as written:
        written.write({"event": "opened", "time": 1.7e9, "steps": 3, "rows": 64, "replicas": 1})
        for n in range(1, steps + 1):
            written.write(STEP | {"step": n, "loss": loss, "rows": [4 * n, 4 * n + 4], "rank": 0})
    return folder


def test_the_report_lies_in_the_run_folder_with_its_markdown_beside_it(tmp_path):
    found = report(a_run(tmp_path / "run"))
    assert (Path(found.page), Path(found.markdown)) == (tmp_path / "run/report.html", tmp_path / "run/report.md")
    html = (tmp_path / "run/report.html").read_text()
    assert found.bytes == len(html.encode()) and "<h1>run " in html and found.status == "not finished"
    assert "[All curves, recipe and environment](<report.html>)" in (tmp_path / "run/report.md").read_text()


def priced(run, **given):
    report(run, **given)
    html = (run / "report.html").read_text()
    return html[html.index("Scaling and cost") :].partition("</section>")[0]


def test_it_says_what_a_run_cost_where_a_price_is_known(tmp_path):
    assert "cost of the run" not in priced(a_run(tmp_path / "none"))
    mine = Recipe.model_validate({"steps": 3, "run": {"price": 7200}})  # two dollars a second
    run = a_run(tmp_path / "mine", mine)
    assert "$0.60" in priced(run) and "$7200 a replica and hour (run.price)" in priced(run)
    assert "$0.90" in priced(run, price=10800.0) and "(--price)" in priced(run, price=10800.0)


def test_of_a_gpu_the_price_table_knows_what_it_costs(tmp_path):
    run = a_run(tmp_path / "run")
    with Journal(run / "journal.jsonl") as written:
        kernels = {"gpu": "NVIDIA H200"}
        written.write({"event": "started", "rank": 0, "pid": 1, "host": "h", "lanes": [0, 4], "kernels": kernels})
    assert "$4.45 a replica and hour (akash.network" in priced(run)
    (tmp_path / "prices.yaml").write_text("H200: {dollars: 1.5, source: mine, date: 2026-11-28}\n")
    assert "$1.5 a replica and hour (mine, 2026-11-28)" in priced(run, prices=tmp_path / "prices.yaml")
    with pytest.raises(RecipeError, match="is no price table"):
        report(run, prices=run / "recipe.yaml")


def test_it_can_lie_elsewhere_and_stand_beside_another_run(tmp_path):
    clip = Recipe(steps=3, optimizer=Optimizer(clip=0.25))
    one, two = a_run(tmp_path / "one", clip), a_run(tmp_path / "two", steps=2, loss=2.5)
    report(one, tmp_path / "x.html", two, 3.0)
    html = (tmp_path / "x.html").read_text()
    assert "Beside two" in html and "loss of two" in html and "cost of the run" in html
    assert "Journals: 0 steps equal, then step 1: loss 2.0 | 2.5." in html
    assert '<th scope="row">optimizer.clip</th><td>0.25</td><td>1.0</td>' in html
    assert '<th scope="row">steps</th><td>3</td><td>none</td>' in html
    assert (tmp_path / "x.md").exists() and not (one / "report.html").exists()


def test_what_is_no_run_is_said_and_a_recipe_that_cannot_be_read_is_noted(tmp_path):
    with pytest.raises(DataError, match=r"holds no journal\.jsonl"):
        report(tmp_path)
    run = a_run(tmp_path / "run")
    (run / "recipe.yaml").write_text("steps: 3\nnonsense: 1\n")
    assert any("does not read the recipe" in sentence for sentence in report(run).words)
    (run / "recipe.yaml").unlink()
    assert any("recipe cannot be read" in sentence for sentence in report(run).words)


def test_a_report_is_written_however_a_run_ends_and_never_ends_one(tmp_path):
    run, said = a_run(tmp_path / "run"), []
    with pytest.raises(VerifyError, match="the cause"), reported(run, said.append):
        raise VerifyError("the cause")
    assert (run / "report.html").exists() and said == []
    (run / "journal.jsonl").write_text("no line of a journal\n")
    with reported(run, said.append):
        pass
    assert len(said) == 1 and said[0].startswith("no report of this run yet: ")


def test_the_command_line_prints_words_or_json(samestep, tmp_path):
    run = a_run(tmp_path / "run")
    done = samestep("report", run, "--json")
    assert done.code == 0 and done.json["page"] == str(run / "report.html")
    done = samestep("report", run, "--to", tmp_path / "r.html")
    assert done.code == 0 and done.out.endswith(
        f"{tmp_path / 'r.html'} ({(tmp_path / 'r.html').stat().st_size / 1000:,.0f} kB) and {tmp_path / 'r.md'}\n"
    )
    assert samestep("report", tmp_path, "--json").code == 3


def test_a_report_imports_neither_torch_nor_transformers():
    code = (
        "import sys, samestep.verbs.report, samestep.report.page; print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_a_run_reports_itself_serves_metrics_and_tells_its_sinks(tmp_path, cache, monkeypatch):
    from samestep.report import metrics, sinks
    from samestep.verbs.train import train

    texts, told = [], []
    monkeypatch.setitem(sinks.SINKS, "wandb", lambda *_: sinks.Sink(lambda *said: told.append(said), lambda: None))
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: sys)
    console, run = Console(file=StringIO(), width=200), tmp_path / "run"

    def look(event, hear=metrics.hearer):
        if event["event"] == "step":
            address = console.file.getvalue().split("metrics at ")[1].split()[0]
            texts.append(urllib.request.urlopen(address, timeout=30).read().decode())

    both = metrics.hearer
    monkeypatch.setattr(metrics, "hearer", lambda registry: (hear := both(registry)) and (lambda e: (hear(e), look(e))))
    changes = ["steps=3", f"run.cache={cache}", "run.sinks=[wandb]"]
    summary = train(TINY, changes, run, "local", console, 0)
    assert "samestep_step 3.0" in texts[-1] and [step for step, found in told if "loss" in found] == [1, 2, 3]
    html = (run / "report.html").read_text()
    assert summary.digest in html and "Time by phase" in html and "Of the replicas&#39; time" in html
    events = journal.read(run / "journal.jsonl")
    assert json.loads(json.dumps(verb.as_dict(report(run))))["status"] == "finished"
    assert {event["event"] for event in events} >= {"spent", "finished"}
    plain = train(TINY, ["steps=3", f"run.cache={cache}"], tmp_path / "plain", "local", console)
    assert plain.digest == summary.digest  # sinks and metrics change no number
