import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from samestep.errors import RecipeError
from samestep.model.folder import (
    check_folder,
    check_positions,
    check_vocabulary,
    resolve,
    tokenizer_size,
    weight_files,
    write_tokenizer,
)
from samestep.recipe.schema import Model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes: nothing reads the weights themselves."""
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder / "config.json", {"model_type": "llama", "vocab_size": 300})
    write(folder / "tokenizer.json", {"model": {"vocab": {"a": 0, "b": 299}}})
    (folder / "model.safetensors").touch()
    return folder


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def rename_weights(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)


def index(folder: Path, *parts: str) -> None:
    (folder / "model.safetensors").unlink()
    weights = {f"tensor {part}": part for part in parts}
    write(folder / "model.safetensors.index.json", {"weight_map": weights})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "moved": (lambda f: f.rename(f.with_name("elsewhere")), "which is no folder; name one with config.json"),
    "no config": (lambda f: (f / "config.json").unlink(), r"cannot read .*config.json \(No such file"),
    "cut config": (lambda f: (f / "config.json").write_text('{"model_'), "is not readable JSON .*fetch it again"),
    "a list": (lambda f: write(f / "config.json", []), "holds no JSON object"),
    "no type": (lambda f: write(f / "config.json", {}), "has no model_type"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "holds no model.safetensors; .* new weights use model.config=.*model/config.json",
    ),
    "pickle": (lambda f: rename_weights(f, "pytorch_model.bin"), r"pickle .*from_pretrained\('.*save_pretrained\('"),
    "a part": (lambda f: index(f, "one.safetensors"), "index.json names one.safetensors"),
    "no parts": (lambda f: index(f), "names no file"),
    "quantized": (
        lambda f: write(f / "config.json", {"model_type": "llama", "quantization_config": {"bits": 4}}),
        "quantized weights, which cannot be trained",
    ),
    "small embedding": (
        lambda f: write(f / "config.json", {"model_type": "llama", "vocab_size": 299}),
        "the tokenizer has 300 tokens but vocab_size in .*config.json is 299",
    ),
    "small text embedding": (
        lambda f: write(f / "config.json", {"model_type": "gemma3", "text_config": {"vocab_size": 10}}),
        "the tokenizer has 300 tokens but vocab_size in .*config.json is 10",
    ),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("?"), "tokenizer.json is not readable JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_cannot_be_trained_from_is_refused_in_one_line(folder: Path, name: str) -> None:
    check_folder(folder)
    breaks, message = BROKEN[name]
    breaks(folder)
    with pytest.raises(RecipeError, match=message) as error:
        check_folder(folder)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_weights_may_be_in_several_files(folder: Path) -> None:
    index(folder, "one.safetensors", "two.safetensors")
    for part in ("one.safetensors", "two.safetensors"):
        (folder / part).touch()
    check_folder(folder)


def test_the_files_of_weights_are_one_or_those_of_the_index(folder: Path) -> None:
    assert weight_files(folder) == [folder / "model.safetensors"]
    index(folder, "two.safetensors", "one.safetensors")
    with pytest.raises(RecipeError, match=r"names one.safetensors, ...; fetch them again"):
        weight_files(folder)
    for part in ("one.safetensors", "two.safetensors"):
        (folder / part).touch()
    assert weight_files(folder) == [folder / "one.safetensors", folder / "two.safetensors"]
    (folder / "model.safetensors.index.json").unlink()
    assert weight_files(folder) == []


def test_rows_may_be_as_long_as_the_model_can_read(folder: Path) -> None:
    file = folder / "config.json"
    check_positions({"max_position_embeddings": 16}, 16, file)
    check_positions({}, 10**6, file)
    with pytest.raises(
        RecipeError, match=r"data.context is 17 but max_position_embeddings in .*config.json is 16; set"
    ):
        check_positions({"max_position_embeddings": 16}, 17, file)


def test_the_vocabulary_may_be_as_large_as_the_embedding(folder: Path) -> None:
    file = folder / "config.json"
    check_vocabulary({"vocab_size": 50}, 50, file)
    check_vocabulary({}, 10**6, file)
    with pytest.raises(RecipeError, match=r"has 51 tokens but vocab_size in .*config.json is 50"):
        check_vocabulary({"vocab_size": 50}, 51, file)


def test_another_tokenizer_can_be_asked_about(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", {"added_tokens": [{"id": 300, "content": "<s>"}]})
    with pytest.raises(RecipeError, match="has 301 tokens"):
        check_folder(folder, tmp_path / "tokenizer.json")


def test_the_size_of_a_tokenizer_counts_added_tokens_and_unigram_lists(tmp_path: Path) -> None:
    unigram = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": []}
    write(tmp_path / "unigram.json", unigram)
    write(tmp_path / "added.json", {**unigram, "added_tokens": [{"id": 9, "content": "<s>"}]})
    assert tokenizer_size(tmp_path / "unigram.json") == 2
    assert tokenizer_size(tmp_path / "added.json") == 10


def test_paths_start_from_the_recipes_folder(folder: Path) -> None:
    assert resolve(Model(path="model"), folder.parent) == folder
    assert resolve(Model(path=str(folder)), Path("elsewhere")) == folder
    assert resolve(Model(config="config.json"), folder) is None
    assert resolve(Model(), folder) is None
    with pytest.raises(RecipeError, match=r"cannot read .*model/none.json"):
        resolve(Model(config="none.json"), folder)


def test_a_name_is_taken_from_the_local_cache_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert name == "org/model"
        assert not any("bin" in pattern for pattern in allow_patterns)
        asked.append(local_files_only)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve(Model(name="org/model"), Path()) == folder
    assert asked == [True]
    (folder / "model.safetensors").unlink()  # as after a download that was cut short
    with pytest.raises(RecipeError, match=r"no model.safetensors"):
        resolve(Model(name="org/model"), Path())
    assert asked == [True, True, False]


def test_a_name_that_is_nowhere_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, **_: object) -> str:
        raise OSError("no route to host\nand a page of advice")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(RecipeError, match=r"asks for org/model, .* \(no route to host\); check the name .* model.path"):
        resolve(Model(name="org/model"), Path())


def test_a_tokenizer_without_companions_gets_what_autotokenizer_needs(tokenizer_file: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, tokenizer_file, None, eos=0, context=24)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "def step(n): return 'same'  # ü\n\n\treplicas"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|endoftext|>", 0, 0)
    assert tokenizer.model_max_length == 24


def test_a_tokenizers_companions_go_along(tokenizer_file: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    write_tokenizer(tmp_path, tokenizer_file, folder, eos=0, context=24)
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (tmp_path / "tokenizer.json").read_bytes() == tokenizer_file.read_bytes()
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    write(folder / "tokenizer_config.json", {"eos_token": "mine"})
    write_tokenizer(tmp_path, tokenizer_file, folder, eos=0, context=24)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"eos_token": "mine"}


def test_checking_needs_neither_torch_nor_transformers(folder: Path) -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'tokenizers'}"
    imports = "import pathlib, sys; from samestep.model.folder import check_folder"
    code = f"{imports}; check_folder(pathlib.Path(sys.argv[1])); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, folder], check=True)
