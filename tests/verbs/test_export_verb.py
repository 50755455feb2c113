import json
import shutil
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from samestep.errors import ClusterError, DataError, RecipeError, VerifyError
from samestep.recipe.load import dump, load
from samestep.recover.digest import of_folder
from samestep.recover.journal import Journal
from samestep.verbs import export as verb

# peft 0.21 asks transformers 5.23 by an old name when it makes adapters
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]}


def write_tokenizer(folder: Path) -> None:
    """A token a byte, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def write_base(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_adapter(base: Path, folder: Path, reward: bool, **settings: object) -> None:
    if reward:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
    task = "SEQ_CLS" if reward else "CAUSAL_LM"
    model = peft.get_peft_model(model, peft.LoraConfig(task_type=task, **LORA, **settings))
    torch.manual_seed(1)
    for name, tensor in model.named_parameters():
        if "lora_B" in name or "score" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    model.save_pretrained(folder)


def write_run(folder: Path, base: Path, kind: str = "sft", *, lora: bool = False, **settings: object) -> Path:
    """What train leaves behind, made by hand; returns the run folder."""
    model = folder / "model"
    folder.mkdir()
    if lora:
        write_adapter(base, model, kind == "reward", **settings)
        write_tokenizer(model)
    elif kind == "reward":
        classifier = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        classifier.save_pretrained(model)
        write_tokenizer(model)
    else:
        shutil.copytree(base, model)
    text = f"steps: 2\nmodel: {{path: {base}{', lora: {rank: 2}' if lora else ''}}}\nobjective: {{kind: {kind}}}\n"
    (folder / "recipe.yaml").write_text(text)
    (folder / "recipe.yaml").write_text(dump(load(folder / "recipe.yaml")))
    with Journal(folder / "journal.jsonl") as journal:
        for n, loss in enumerate([3.0, 2.5], start=1):
            journal.write({"event": "step", "step": n, "loss": loss, "tokens": 1000, "seconds": 0.5})
        journal.write({"event": "saved", "digest": of_folder(model)})
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run, which no test changes."""
    return write_run(tmp_path_factory.mktemp("runs") / "tuned", base, lora=True)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20)[None]).logits


def test_a_whole_model_is_loaded_by_plain_transformers(base, tmp_path):
    run, to = write_run(tmp_path / "run", base), tmp_path / "deep" / "out"
    done = verb.export(run, to, merge=False)
    assert (done.kind, done.logits, done.digest) == ("model", 0.0, of_folder(run / "model"))
    expected = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    expected |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert set(done.files) == {file.name for file in to.iterdir()} == expected
    model = transformers.AutoModelForCausalLM.from_pretrained(to)
    assert torch.equal(logits(model), logits(transformers.AutoModelForCausalLM.from_pretrained(run / "model")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(to)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|user|>hi"
    card = (to / "README.md").read_text()
    assert "# out" in card and str(base) in card and "3.0000, 2.5000" in card and done.digest in card
    assert [line for line in verb.lines(done) if "bit for bit; logits of a probe text equal" in line]


def test_an_adapter_is_loaded_by_plain_peft(base, tuned, tmp_path):
    done = verb.export(tuned, tmp_path / "out", merge=False)
    assert done.kind == "adapter" and {"adapter_config.json", "adapter_model.safetensors"} <= set(done.files)
    ours = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert not torch.allclose(logits(ours), logits(plain))
    assert torch.equal(logits(ours), logits(peft.PeftModel.from_pretrained(plain, tuned / "model")))


def test_an_adapter_of_a_hub_model_names_it_as_the_hub_does(base, tmp_path):
    run = write_run(tmp_path / "run", base, lora=True)
    recipe = (run / "recipe.yaml").read_text().replace("name: null", "name: org/base")
    (run / "recipe.yaml").write_text(recipe.replace(f"path: {base}", "path: null"))
    assert verb.export(run, tmp_path / "out", merge=False).base == "org/base"
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    assert "base_model: org/base" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_a_merged_model_needs_no_peft(base, tmp_path, settings):
    run = write_run(tmp_path / "run", base, lora=True, **settings)
    done = verb.export(run, tmp_path / "out", merge=True)
    assert done.kind == "merged" and done.logits < 1e-5 and "chat_template.jinja" in done.files
    assert not any("adapter" in file for file in done.files)
    merged = logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    trained = logits(peft.PeftModel.from_pretrained(plain, run / "model"))
    assert (merged - trained).abs().max() < 1e-4 * trained.abs().max()


@pytest.mark.parametrize(("lora", "merge"), [(False, False), (True, False), (True, True)])
def test_a_reward_model_keeps_its_head(base, tmp_path, lora, merge):
    run = write_run(tmp_path / "run", base, "reward", lora=lora)
    verb.export(run, tmp_path / "out", merge)
    automatic = peft.AutoPeftModelForSequenceClassification if lora and not merge else None
    automatic = automatic or transformers.AutoModelForSequenceClassification
    score = logits(automatic.from_pretrained(tmp_path / "out", num_labels=1))
    head = next(t for name, t in _stored(run / "model").items() if name.endswith("score.weight"))
    written = automatic.from_pretrained(tmp_path / "out", num_labels=1).state_dict()
    kept = [t for name, t in written.items() if "score" in name and "original" not in name]
    assert score.shape == (1, 1) and torch.equal(kept[0], head)


def _stored(folder):
    return safetensors.torch.load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("merge", [False, True])
def test_a_tensor_changed_on_its_way_fails_the_export_and_leaves_nothing(tuned, tmp_path, monkeypatch, merge):
    def write_badly(source, kind, live, folder):
        expected = write(source, kind, live, folder)
        file = next(folder.glob("*.safetensors"))
        tensors = safetensors.torch.load_file(file)
        name = next(name for name in sorted(tensors) if "up_proj" in name)
        tensors[name].view(-1).view(torch.int32)[0] ^= 1  # the last bit of one value
        safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
        return expected

    write = verb._write
    monkeypatch.setattr(verb, "_write", write_badly)
    with pytest.raises(VerifyError, match=r"not the run's model: .*layers\.0\.mlp\.up_proj.* \(1 of \d+ values differ"):
        verb.export(tuned, tmp_path / "out", merge)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_deleted_by_the_next(tuned, tmp_path):
    (tmp_path / f".out-new-{2**22 + 1}").mkdir()  # of a process that is no more
    verb.export(tuned, tmp_path / "out", merge=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written_is_named(tuned, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match=r"file/out cannot be written \(.*Not a directory"):
        verb.export(tuned, tmp_path / "file/out", merge=False)


def test_a_changed_config_shows_in_the_logits(base, tmp_path, monkeypatch):
    def write_badly(source, kind, live, folder):
        expected = write(source, kind, live, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
        return expected

    write = verb._write
    monkeypatch.setattr(verb, "_write", write_badly)
    with pytest.raises(VerifyError, match=r"the logits of what was written are .* off the run's model"):
        verb.export(write_run(tmp_path / "run", base), tmp_path / "out", merge=False)


def test_refusals_come_before_anything_is_written(base, tuned, tmp_path):
    full = write_run(tmp_path / "full", base)
    with pytest.raises(RecipeError, match=r"--merge folds LoRA in, but .*full trained all weights; leave --merge out"):
        verb.export(full, tmp_path / "out", merge=True)
    with pytest.raises(RecipeError, match=r"--to asks for .*full, which is not an empty folder; choose another"):
        verb.export(tuned, full, merge=False)
    with pytest.raises(DataError, match=r"is no run folder \(it has no journal.jsonl\)"):
        verb.export(base, tmp_path / "out", merge=False)
    shutil.rmtree(full / "model")
    with pytest.raises(DataError, match="without model/: it is not finished"):
        verb.export(full, tmp_path / "out", merge=False)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_model_was_changed_since_is_refused(base, tmp_path):
    run = write_run(tmp_path / "run", base)
    tensors = _stored(run / "model")
    tensors["model.norm.weight"][0] += 1
    safetensors.torch.save_file(tensors, run / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"has the digest sha256:.*, but the run saved sha256:.*; restore"):
        verb.export(run, tmp_path / "out", merge=False)


def test_an_empty_folder_is_taken_and_json_is_one_object(samestep, tuned, tmp_path):
    (tmp_path / "out").mkdir()
    result = samestep("export", tuned, "--to", "out", "--json")
    assert result.code == 0, result.err
    assert result.json["kind"] == "adapter" and result.err == ""
    again = samestep("export", tuned, "--to", "out")
    assert again.code == 2 and "not an empty folder" in again.err
