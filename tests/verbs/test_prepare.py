import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from samestep.data import pack
from samestep.data.rows import rows_of
from samestep.errors import DataError, RecipeError
from samestep.recipe.schema import Recipe
from samestep.replica.job import parse
from samestep.replica.setup import feed_of, fixed_of
from samestep.verbs.places import anchored
from samestep.verbs.prepare import Prepared, prepare

WORDS = ["[end]", *(f"w{i}" for i in range(1, 40))]
Make = Callable[..., Prepared]


def pairs(count: int, words: int) -> list[dict[str, str]]:
    """Rows whose sequence has words + 2 tokens: the prompt, the completion and the end."""
    return [{"prompt": f"w{i}", "completion": " w5" * words} for i in range(1, count + 1)]


def recipe(**changes: Any) -> dict[str, Any]:
    data = {"tokenizer": "words", "context": 8, "held_out": 0.2, "packing": False} | changes.pop("data", {})
    whole = {"epochs": 1, "lanes": 2, "objective": {"kind": "sft"}, "batch": {"micro_batch": 1}, "data": data}
    return whole | {"run": {"cache": "cache"}} | changes


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Prepares a recipe of rows by file name; `said` and `progress` go along."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[end]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "words").mkdir()
    tokenizer.save("words/tokenizer.json")
    Path("words/tokenizer_config.json").write_text('{"eos_token": "[end]"}')

    def make(files: dict[str, list[Any]], *rest: Any, **changes: Any) -> Prepared:
        for name, rows in files.items():
            Path(name).write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        Path("recipe.yaml").write_text(json.dumps(recipe(**changes)))
        return prepare(Path("recipe.yaml"), [], *(rest or (lambda _: None,)))

    return make


TWO = {"a.jsonl": pairs(20, 3), "b.jsonl": pairs(30, 5)}
WEIGHTED = {"source": {"a.jsonl": 2.0, "b.jsonl": 0.5}}


def test_two_weighted_sources_give_the_rows_that_an_epoch_reads(make: Make, tmp_path: Path) -> None:
    said: list[str] = []
    done: list[tuple[str, int]] = []
    found = make(TWO, said.append, lambda *read: done.append(read), data=WEIGHTED)
    plans = [rows_of(corpus.train, found.recipe.data, "sft") for corpus in found.corpora.values()]
    a, b = map(len, plans)
    assert list(found.corpora) == ["a.jsonl", "b.jsonl"]
    assert 10 <= a < 20 and 15 <= b < 30
    assert found.rows == 2 * a + round(b / 2)
    assert found.steps == -(-found.rows // 2)
    assert said == [f"encoding {name}: prompt_completion" for name in TWO]
    assert dict(done) == {name: (tmp_path / name).stat().st_size for name in TWO}


def test_the_replicas_feed_has_the_rows_that_were_prepared(make: Make) -> None:
    found = make(TWO, data=WEIGHTED)
    job = parse(json.loads(json.dumps(found.job("train", Path("run")).dump())))
    feed = feed_of(job)
    assert (feed.steps_per_epoch, job.steps, job.stop) == (found.steps,) * 3
    held = [len(corpus.held_out.ends) for corpus in found.corpora.values()]
    assert sum(held) == len(fixed_of(job, "held_out"))
    assert min(held) > 0


def test_the_digest_of_the_rows_is_the_plans_own_or_one_over_them(make: Make) -> None:
    one = make(TWO, data={"source": "a.jsonl"})
    (corpus,) = one.corpora.values()
    assert one.rows_digest == pack.digest(rows_of(corpus.train, one.recipe.data, "sft"))
    orders = [{"a.jsonl": 1.0, "b.jsonl": 1.0}, {"b.jsonl": 1.0, "a.jsonl": 1.0}]
    digests = {make(TWO, data={"source": source}).rows_digest for source in orders}
    assert len({one.rows_digest, *digests}) == 3


def test_samples_that_are_left_out_are_told(make: Make) -> None:
    said: list[str] = []
    rows = [*pairs(20, 3), "{broken", {"prompt": "w1"}]
    found = make({"a.jsonl": rows}, said.append, data={"source": "a.jsonl", "invalid": "skip"})
    assert found.corpora["a.jsonl"].skipped_count == 2
    assert said[-1].startswith("2 samples of a.jsonl cannot be used and are left out: ")
    assert "/a.jsonl:21:2: not JSON" in said[-1]


def test_a_long_sample_is_refused_by_line_skipped_or_cut(make: Make) -> None:
    files = {"a.jsonl": [*pairs(20, 3), {"prompt": "w1", "completion": " w2" * 30}]}
    with pytest.raises(
        DataError, match=r"^a\.jsonl:21: a sample of 32 tokens, but data\.context is 8 \(too long: 1 of 21"
    ):
        make(files, data={"source": "a.jsonl", "held_out": 0})
    rows = [
        make(files, data={"source": "a.jsonl", "held_out": 0, "too_long": policy}).rows
        for policy in ("skip", "truncate")
    ]
    assert rows == [20, 21]


def test_a_source_without_a_row_is_refused_by_name(make: Make) -> None:
    files = {"a.jsonl": pairs(20, 3), "b.jsonl": pairs(20, 30)}
    data = {"source": {"a.jsonl": 1.0, "b.jsonl": 1.0}, "too_long": "skip"}
    with pytest.raises(
        DataError, match=r"^no sample of b\.jsonl can be trained on: each is longer than data\.context 8"
    ):
        make(files, data=data)


def test_less_than_a_step_is_refused(make: Make) -> None:
    with pytest.raises(DataError, match="one step takes 64"):
        make(TWO, data=WEIGHTED, lanes=64)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 39}, r"the tokenizer has 40 tokens but vocab_size in .*config\.json is 39"),
        (
            {"vocab_size": 40, "max_position_embeddings": 7},
            r"data\.context is 8 but max_position_embeddings in .* is 7",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_the_data_is_read(
    make: Make, config: dict[str, int], message: str
) -> None:
    said: list[str] = []
    Path("config.json").write_text(json.dumps({"model_type": "llama", **config}))
    with pytest.raises(RecipeError, match=message):
        make(TWO, said.append, data=WEIGHTED, model={"config": "config.json"})
    assert said == [] and not Path("cache").exists()


def test_an_objective_that_the_samples_do_not_serve_is_refused(make: Make) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl"):
        make(TWO, data=WEIGHTED, objective={"kind": "dpo"})


def test_a_second_start_encodes_nothing(make: Make) -> None:
    first, said = make(TWO, data=WEIGHTED), list[str]()
    again = make(TWO, said.append, data=WEIGHTED)
    assert said == [] and again.rows_digest == first.rows_digest
    assert [corpus.folder for corpus in again.corpora.values()] == [corpus.folder for corpus in first.corpora.values()]


@pytest.mark.parametrize(("given", "found"), [("beside", "beside"), ("../up", "../up"), ("/else/where", "/else/where")])
def test_an_alternate_starts_at_the_recipe_s_folder_and_is_found_from_anywhere(
    tmp_path: Path, given: str, found: str
) -> None:
    recipe = anchored(Recipe(steps=1, run={"alternate": given}), tmp_path)
    assert recipe.run.alternate == str((tmp_path / found).resolve())
    assert anchored(recipe, Path("/other")) == recipe


def test_without_an_alternate_there_is_none(tmp_path: Path) -> None:
    assert anchored(Recipe(steps=1), tmp_path).run.alternate is None
