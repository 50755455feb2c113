"""The digest: one number for one model, wherever it is; and any change of it, or of a file of it, is noticed."""

import hashlib
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.torch import save, save_file

from samestep.errors import DataError
from samestep.recover import stored
from samestep.recover.digest import TORCH_NAMES, of_folder, of_tensors, per_tensor

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def model() -> Tensors:
    rows = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {"b.weight": rows / 7, "a.bias": rows[0].bfloat16(), "é": torch.tensor(3, dtype=torch.int64)}


def text(written: str) -> bytes:
    return struct.pack("<Q", len(written.encode())) + written.encode()


def test_the_digest_is_the_one_that_is_documented() -> None:
    named = {"w": torch.tensor([[1.0, -2.0]]), "b": torch.tensor([], dtype=torch.int8)}
    w = hashlib.sha256(text("F32") + struct.pack("<3Q2f", 2, 1, 2, 1.0, -2.0)).digest()
    b = hashlib.sha256(text("I8") + struct.pack("<2Q", 1, 0)).digest()
    whole = text("samestep digest 1") + struct.pack("<Q", 2) + text("b") + b + text("w") + w
    assert per_tensor(named) == {"w": w.hex(), "b": b.hex()}
    assert of_tensors(named) == f"sha256:{hashlib.sha256(whole).hexdigest()}"


shapes = st.lists(st.integers(0, 5), max_size=3)
dtypes = st.sampled_from([getattr(torch, name.removeprefix("torch.")) for name in TORCH_NAMES])


def tensor(seed: int, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (torch.Size(shape).numel() * dtype.itemsize,), generator=generator)
    return (raw % 2 if dtype == torch.bool else raw).to(torch.uint8).view(dtype).reshape(shape)


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.builds(tensor, st.integers(0, 99), shapes, dtypes), min_size=1, max_size=4))
def test_tensors_and_their_file_have_one_digest(folder: Path, named: Tensors) -> None:
    named.pop("__metadata__", None)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    assert per_tensor(folder) == per_tensor(named)
    assert of_folder(folder) == of_tensors(named)


def test_order_layout_and_shards_do_not_count(tmp_path: Path) -> None:
    named = model()
    shuffled = {name: named[name] for name in reversed(named)}
    shuffled["b.weight"] = named["b.weight"].t().contiguous().t().requires_grad_()
    assert not shuffled["b.weight"].is_contiguous()
    assert of_tensors(shuffled) == of_tensors(named)
    for index, (name, one) in enumerate(named.items()):
        save_file({name: one}, tmp_path / f"model-{index}.safetensors")
    assert of_folder(tmp_path) == of_tensors(named)


def test_name_shape_dtype_and_every_bit_count() -> None:
    base = {"w": torch.zeros(2, 3)}
    others: list[Tensors] = [
        {"v": base["w"]},
        {"w": base["w"].reshape(3, 2)},
        {"w": base["w"].int()},
        {"w": -base["w"]},
        {**base, "x": torch.zeros(0)},
        {},
    ]
    assert len({of_tensors(named) for named in (base, *others)}) == len(others) + 1


def test_names_and_data_cannot_be_moved_between_tensors() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    assert of_tensors({"a": one, "b": two}) != of_tensors({"a": two, "b": one})
    assert per_tensor({"a": one})["a"] == per_tensor({"b": one})["b"]


def test_a_dtype_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(DataError, match=r"w is of torch\.complex128, which safetensors does not hold"):
        of_tensors({"w": torch.zeros(1, dtype=torch.complex128)})


def test_an_index_says_which_files_are_the_model(tmp_path: Path) -> None:
    named = model()
    save_file(named, tmp_path / "model-1.safetensors")
    save_file(named, tmp_path / "original.safetensors")
    with pytest.raises(DataError, match=r"original\.safetensors holds .*, and so does model-1\.safetensors"):
        of_folder(tmp_path)
    index(tmp_path, dict.fromkeys(named, "model-1.safetensors"))
    assert of_folder(tmp_path) == of_tensors(named)
    index(tmp_path, {**dict.fromkeys(named, "model-1.safetensors"), "c": "model-1.safetensors"})
    with pytest.raises(DataError, match="the index promises c, which no file holds"):
        of_folder(tmp_path)


def index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"w": "../x.safetensors"}, "names '../x.safetensors', which is outside its folder"),
        ({"w": "/etc/passwd"}, "names '/etc/passwd', which is outside its folder"),
        ({"w": "gone.safetensors"}, "gone.safetensors cannot be read: No such file or directory"),
        ({"w": 3}, "has no weight_map of tensors to files"),
        (3, "has no weight_map of tensors to files"),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, weight_map: Any, said: str) -> None:
    save_file(model(), tmp_path / "model.safetensors")
    index(tmp_path, weight_map)
    with pytest.raises(DataError) as caught:
        of_folder(tmp_path)
    assert said in str(caught.value)


def test_a_folder_without_safetensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.safetensors file; give a run folder or a model folder"):
        of_folder(tmp_path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = save(model())
    for kept in range(len(content)):
        (tmp_path / "model.safetensors").write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"model\.safetensors is damaged: .*; copy it again"):
            of_folder(tmp_path)


def test_any_bit_changed_in_a_file_changes_the_digest_or_is_refused(tmp_path: Path) -> None:
    content, good = save(model()), of_tensors(model())
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "model.safetensors").write_bytes(changed)
        try:
            assert of_folder(tmp_path) != good
        except DataError as error:
            assert "\n" not in str(error)


entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "I8", "F3", 4, []]),
        "shape": st.sampled_from([[], [4], [2, 2], [-1], [1.0], [True], [2**70, 0], 3, "4", None]),
        "data_offsets": st.sampled_from([[0, 4], [0, 16], [4, 8], [4, 0], [0], [-4, 0], [0, 2**70], None]),
    },
)
headers = st.dictionaries(st.sampled_from(["a", "b", "é"]), entries | st.integers() | st.none(), max_size=3)


@settings(deadline=None)
@given(headers | st.lists(st.integers()) | st.binary(), st.binary(max_size=8) | st.just(bytes(16)))
def test_a_header_that_is_not_refused_is_one_that_safetensors_reads(folder: Path, header: Any, data: bytes) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(encoded)) + encoded + data
    (folder / "model.safetensors").write_bytes(content)
    try:
        found = stored.find(folder)
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert {name: list(each.shape) for name, each in found.items()} == {
        name: each["shape"] for name, each in deserialize(content)
    }


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, 8, "w is F32 [1] in 8 bytes"),
        (
            {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
            8,
            "its tensors overlap or leave a gap at byte",
        ),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 8, "bytes where its header promises"),
        ({"w": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, 4, "w has the unknown dtype 'F7'"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, 4, "w has sizes that are no counts"),
        ({"w": {"dtype": "F32", "data_offsets": [0, 4]}}, 4, "its header has a tensor without 'shape'"),
        ([], 0, "its header is no JSON object"),
    ],
)
def test_what_is_wrong_with_a_header_is_told(tmp_path: Path, header: Any, data: int, said: str) -> None:
    encoded = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(data))
    with pytest.raises(DataError) as caught:
        of_folder(tmp_path)
    assert "x.safetensors is damaged: " in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(8)}, tmp_path / "x.safetensors")
    (found,) = stored.find(tmp_path).values()
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="was cut short while it was read"):
        list(stored.pieces(found))


def test_a_big_tensor_is_hashed_in_pieces_without_being_held(tmp_path: Path) -> None:
    named = {"w": torch.arange(3_000_001, dtype=torch.int32)}  # 12 MB
    save_file(named, tmp_path / "x.safetensors")
    tracemalloc.start()
    hashed = of_folder(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert hashed == of_tensors(named)
    assert peak < 5_000_000


def test_the_digest_of_a_folder_needs_no_torch() -> None:
    code = "import sys, samestep.recover.digest; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
