"""A checkpoint is whole or it is not there; what was acknowledged is never lost; no changed bit is loaded."""

import errno
import itertools
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import DataError
from samestep.recover import checkpoint, shards
from samestep.recover.checkpoint import Manifest, Saved
from samestep.recover.disk import Disk
from samestep.recover.shards import Part
from tests.recover.power import Recorded, after_cut

SHAPES = {"a": [3, 5], "b.weight": [900]}
CUTS = {"a": [0, 15], "b.weight": [0, 100, 900]}
KINDS = ["weights", "moment0"]
PLACES = [Path("run/checkpoints"), Path("alternate/checkpoints")]
ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE]


def tensors(step: int) -> list[dict[Part, torch.Tensor]]:
    """The parts of two replicas; every number tells its step."""
    generator, found = torch.Generator().manual_seed(step), [{}, {}]
    for kind in KINDS:
        for number, (name, cuts) in enumerate(CUTS.items()):
            for start, stop in itertools.pairwise(cuts):
                found[(number + start) % 2][Part(kind, name, start, stop)] = torch.randn(
                    stop - start, generator=generator
                )
    return found


def save(disk: Disk, folder: Path, step: int) -> Manifest:
    partial = checkpoint.begin(disk, folder, step)
    written = {
        f"shard-{rank}.safetensors": shards.write(disk, partial / f"shard-{rank}.safetensors", parts)
        for rank, parts in enumerate(tensors(step))
    }
    manifest = Manifest(step, f"sha256:{step:064}", SHAPES, [step, step], KINDS, {"best": None}, written)
    checkpoint.commit(disk, folder, manifest)
    return manifest


def rotate(disk: Disk, folder: Path, keep: int) -> None:
    for old in checkpoint.surplus(checkpoint.saved(folder), keep):
        checkpoint.discard(disk, folder, old.step)


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob("*.partial"))


def same(folder: Path, saved: Manifest | Saved) -> bool:
    """Whether the parts are those of one step: never mixed."""
    wanted = {part: tensor for parts in tensors(saved.step) for part, tensor in parts.items()}
    place = checkpoint.folder_of(folder, saved.step)
    found = dict(checkpoint.parts(place, checkpoint.read(place)))
    return found.keys() == wanted.keys() and all(
        torch.equal(torch.frombuffer(bytearray(found[part]), dtype=torch.float32), tensor)
        for part, tensor in wanted.items()
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = save(Disk(), tmp_path / "c", 7)
    found, refused = checkpoint.newest(tmp_path / "c")
    assert checkpoint.read(found.folder) == saved and not refused and same(tmp_path / "c", found)


def test_the_newest_whole_one_is_loaded_and_the_reason_is_said(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(Disk(), tmp_path / "c", step)
    (tmp_path / "c/step-3/shard-1.safetensors").unlink()
    (tmp_path / "c/step-2/manifest.json").write_text("{}")
    found, refused = checkpoint.newest(tmp_path / "c")
    assert found.step == 1
    assert "step-3/shard-1.safetensors cannot be read: No such file" in refused[0]
    assert "step-2/manifest.json is not what was written" in refused[1]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nothing") == (None, [])


@given(st.sets(st.tuples(st.integers(0, 50), st.sampled_from(PLACES)), min_size=1), st.integers(0, 5))
def test_the_newest_of_all_places_are_kept_and_at_least_one(found: set[tuple[int, Path]], keep: int) -> None:
    saved = [Saved(step, checkpoint.folder_of(place, step)) for step, place in found]
    surplus = checkpoint.surplus(saved, keep)
    steps, kept = {one.step for one in saved}, {one.step for one in set(saved) - set(surplus)}
    assert kept == set(sorted(steps)[-max(1, keep) :])
    assert [one.step for one in surplus] == sorted(one.step for one in saved if one.step not in kept)


@pytest.mark.parametrize("elsewhere", [(), (2,), (1, 3)])
def test_the_newest_whole_one_of_all_places_is_loaded(tmp_path: Path, elsewhere: tuple[int, ...]) -> None:
    places = tmp_path / "run", tmp_path / "alternate"
    for step in (1, 2, 3):
        save(Disk(), places[step in elsewhere], step)
    found, refused = checkpoint.newest(*places)
    assert found == (3, places[3 in elsewhere] / "step-3") and not refused
    (found.folder / "manifest.json").unlink()
    found, refused = checkpoint.newest(*places)
    assert found == (2, places[2 in elsewhere] / "step-2")
    assert [reason for reason in refused if str(places[3 in elsewhere] / "step-3/manifest.json") in reason]


def test_of_one_step_in_two_places_that_of_the_first_is_loaded_and_the_other_where_it_is_not_whole(
    tmp_path: Path,
) -> None:
    places = tmp_path / "run", tmp_path / "alternate"
    for place in places:
        save(Disk(), place, 1)
    assert checkpoint.newest(*places)[0] == (1, places[0] / "step-1")
    (places[0] / "step-1/manifest.json").unlink()
    assert checkpoint.newest(*places)[0] == (1, places[1] / "step-1")


@pytest.mark.parametrize(("wrote", "tried"), [("aaa", "abc"), ("aba", "bc"), ("bbb", "bc"), ("ccc", "c"), ("abc", "c")])
def test_a_place_that_has_refused_a_shard_is_not_asked_for_the_rest(wrote: str, tried: str) -> None:
    places = list(map(Path, "abc"))
    assert list(checkpoint.takers(places, map(Path, wrote))) == list(map(Path, tried))


def test_a_run_without_an_alternate_has_one_place() -> None:
    assert checkpoint.places(Path("run"), None) == (Path("run/checkpoints"),)
    assert checkpoint.places(Path("run"), "/other") == (Path("run/checkpoints"), Path("/other/checkpoints"))


def test_what_a_kill_left_is_no_checkpoint_and_is_written_over(tmp_path: Path) -> None:
    partial = checkpoint.begin(Disk(), tmp_path / "c", 5)
    (partial / "shard-0.safetensors").write_text("half")
    assert checkpoint.newest(tmp_path / "c") == (None, []) and leftovers(tmp_path / "c") == [partial]
    checkpoint.clean(Disk(), tmp_path / "c")
    assert same(tmp_path / "c", save(Disk(), tmp_path / "c", 5))
    assert not leftovers(tmp_path / "c")


def test_files_of_other_attempts_are_no_part_of_it(tmp_path: Path) -> None:
    partial = checkpoint.begin(Disk(), tmp_path / "c", 1)
    (partial / "shard-7.safetensors").write_text("of a generation that ended")
    manifest = save(Disk(), tmp_path / "c", 1)
    assert {path.name for path in (tmp_path / "c/step-1").iterdir()} == {"manifest.json", *manifest.shards}


def test_every_flipped_bit_of_a_manifest_and_a_header_is_refused(tmp_path: Path) -> None:
    save(Disk(), tmp_path / "c", 1)
    folder = tmp_path / "c/step-1"
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        head = len(whole) if path.suffix == ".json" else 8 + int.from_bytes(whole[:8], "little")
        for place in range(0, 8 * head, 7):
            refused_with(path, flipped(whole, place), folder, path.name)
        path.write_bytes(whole)
    checkpoint.verify(folder)


def test_flipped_bits_of_the_data_are_refused_with_file_and_tensor(tmp_path: Path) -> None:
    manifest = save(Disk(), tmp_path / "c", 1)
    folder, chance = tmp_path / "c/step-1", random.Random(3)
    for name in manifest.shards:
        whole = (folder / name).read_bytes()
        start = 8 + int.from_bytes(whole[:8], "little")
        for _ in range(200):
            place = chance.randrange(8 * start, 8 * len(whole))
            refused_with(
                folder / name, flipped(whole, place), folder, rf"{name}: \w+/\S+\[\d+:\d+\] is not what was written"
            )
        (folder / name).write_bytes(whole)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    save(Disk(), tmp_path / "c", 1)
    folder = tmp_path / "c/step-1"
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for size in range(0, len(whole), 13):
            refused_with(path, whole[:size], folder, path.name)
        path.write_bytes(whole)


def refused_with(path: Path, content: bytes, folder: Path, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=match):
        checkpoint.verify(folder)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_manifest_of_another_format_names_both(tmp_path: Path) -> None:
    save(Disk(), tmp_path / "c", 1)
    path = tmp_path / "c/step-1/manifest.json"
    body = path.read_bytes().partition(b',"check"')[0].replace(b"checkpoint 1", b"checkpoint 9")
    path.write_bytes(body + b',"check":"%s"}\n' % shards.digest(body).encode())
    with pytest.raises(
        DataError, match="format 'samestep checkpoint 9', but this version reads 'samestep checkpoint 1'"
    ):
        checkpoint.read(tmp_path / "c/step-1")


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        ("moment0/a[0:15]", "lists no moment0 of a"),
        ("weights/b.weight[100:900]", "weights of b.weight ends at 100 of 900"),
    ],
)
def test_a_manifest_without_a_part_is_refused(tmp_path: Path, drop: str, says: str) -> None:
    manifest = save(Disk(), tmp_path / "c", 1)
    for shard in manifest.shards.values():
        shard.tensors.pop(drop, None)
    (tmp_path / "c/step-1/manifest.json").write_bytes(checkpoint.encode(manifest))
    with pytest.raises(DataError, match=says):
        checkpoint.read(tmp_path / "c/step-1")


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_failed_call_of_a_save_leaves_the_older_one_and_the_next_save_works(tmp_path: Path, error: int) -> None:
    at = 0
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        save(Disk(), folder / "c", 1)
        try:
            save(Disk(Recorded(folder / "c", fail_at=at, error=error)), folder / "c", 2)
        except OSError as raised:
            assert raised.errno == error
        else:
            break
        found, _ = checkpoint.newest(folder / "c")
        assert found.step in (1, 2) and same(folder / "c", found)
        if not (folder / "c/step-2").exists():
            checkpoint.clean(Disk(), folder / "c")
            save(Disk(), folder / "c", 2)
        rotate(Disk(), folder / "c", 1)
        found, refused = checkpoint.newest(folder / "c")
        assert found.step == 2 and not refused and not leftovers(folder / "c")
        at += 1
    assert at > 10


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path: Path, error: int) -> None:
    for at in range(1, 4):  # the writes and the sync
        with pytest.raises(OSError, match=r"\[Errno"):
            Disk(Recorded(tmp_path, fail_at=at, error=error)).write(tmp_path / "file", [b"one", b"two"])
        assert list(tmp_path.iterdir()) == []


def test_a_first_folder_whose_sync_failed_is_synced_by_the_next_attempt(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    recorded = Recorded(root, fail_at=1, error=errno.EIO)
    with pytest.raises(OSError, match="Errno"):
        save(Disk(recorded), root / "c", 1)
    save(Disk(recorded), root / "c", 1)
    for number in range(20):
        after_cut(recorded.calls, len(recorded.calls), random.Random(number), tmp_path / f"state-{number}")
        found, _ = checkpoint.newest(tmp_path / f"state-{number}/c")
        assert found is not None and found.step == 1


def test_after_a_power_cut_the_newest_is_whole_and_no_older_than_the_last_acknowledged(
    tmp_path: Path,
) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    recorded = Recorded(root)
    acknowledged = [(0, 0)]
    for step in range(1, 5):
        save(Disk(recorded), root / "c", step)
        acknowledged.append((len(recorded.calls), step))
        rotate(Disk(recorded), root / "c", 2)
    chance = random.Random(1)
    for number in range(1500):
        at = chance.randrange(len(recorded.calls) + 1)
        state = tmp_path / "state"
        after_cut(recorded.calls, at, chance, state)
        found, refused = checkpoint.newest(state / "c")
        promised = max(step for calls, step in acknowledged if calls <= at)
        assert (found.step if found else 0) >= promised and not refused, (number, at)
        assert found is None or same(state / "c", found)
        shutil.rmtree(state)
