"""What nvidia-smi says of GPUs, told before a run. No GPU here: a program of that name says what one would."""

import pytest

from samestep.launch.health import devices
from samestep.launch.health.finding import Need
from tests.launch.health.sick import TORCH, doctor, one, package

GOOD = "0, NVIDIA H100 80GB HBM3, 580.95.05, 81559, 4, Default, 0"


def smi(folder, *rows, code=0):
    """A folder for PATH."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\ncat <<'EOF'\n" + "\n".join(rows) + f"\nEOF\nexit {code}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}


def cuda(folder, version="13.0"):
    return package(folder / "p", "torch", TORCH.format(version="2.13.0", cuda=version))


def test_gpus_without_fault_are_not_found_fault_with(tmp_path):
    found = doctor(tmp_path, env=smi(tmp_path, GOOD), packages=cuda(tmp_path), code=0)
    assert not [each for each in found if each["check"] == "gpu"]


@pytest.mark.parametrize(
    ("rows", "version", "why"),
    [([], "13.0", "there is no GPU here"), ([GOOD], None, "torch 2.13.0 was built without CUDA"), ([GOOD], "13.0", "")],
)
def test_a_recipe_for_gpus_needs_one_that_torch_can_use(rows, version, why):
    seen = devices.Seen(tuple(devices._device(row.split(", ")) for row in rows))
    found = devices.judge(seen, {"torch": "2.13.0", "cuda": version}, Need(cuda=True))
    assert [each.level for each in found] == ["failure" if why else "ok"]
    assert why in found[0].what and ("compute.device: cpu" in found[0].fix) == bool(why)
    assert {each.level for each in devices.judge(seen, {"torch": "2.13.0", "cuda": version}, Need())} <= {
        "ok",
        "warning",
    }


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (GOOD.replace("Default", "Exclusive_Process"), "in compute mode Exclusive_Process: one process"),
        (GOOD.replace("Default", "Prohibited"), "in compute mode Prohibited: no program"),
        (GOOD.replace(", 4,", ", 60000,"), "62.9 GB of 85.5 GB of GPU 0 (NVIDIA H100 80GB HBM3) are used by other"),
        (GOOD.replace("Default, 0", "Default, 7"), "has 7 errors of memory"),
        (GOOD.replace("580.95.05", "550.54.15"), "driver 550.54.15 is too old for CUDA 13.0"),
    ],
)
def test_a_gpu_that_is_not_fit(tmp_path, row, said):
    found = doctor(tmp_path, env=smi(tmp_path, row), packages=cuda(tmp_path), code=0)
    one(found, "gpu", "warning", said)


def test_a_torch_without_cuda_beside_gpus(tmp_path):
    found = doctor(tmp_path, env=smi(tmp_path, GOOD, GOOD.replace("0,", "1,", 1)))
    one(found, "gpu", "warning", "2 GPUs are here, but torch 2.13.0 was built without CUDA")


def test_a_torch_for_cuda_without_a_gpu(tmp_path):
    found = doctor(tmp_path, env={"PATH": "/usr/bin:/bin"}, packages=cuda(tmp_path), code=0)
    one(found, "gpu", "warning", "built for CUDA 13.0, but there is no driver or GPU here")


def test_gpus_of_two_kinds(tmp_path):
    other = GOOD.replace("0, NVIDIA H100 80GB HBM3", "1, NVIDIA A100-SXM4-40GB", 1)
    found = doctor(tmp_path, env=smi(tmp_path, GOOD, other), packages=cuda(tmp_path))
    one(found, "gpu", "warning", "GPUs of 2 kinds are here (NVIDIA A100-SXM4-40GB, NVIDIA H100 80GB HBM3)")


def test_a_driver_that_does_not_answer_its_own_program(tmp_path):
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    found = doctor(tmp_path, env=smi(tmp_path, said, code=9), code=0)
    one(found, "gpu", "warning", f"nvidia-smi is here, but tells of no GPU: {said}")


def test_a_driver_that_hangs(tmp_path, monkeypatch):
    variables = smi(tmp_path)
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setenv("PATH", variables["PATH"])
    monkeypatch.setattr(devices, "PATIENCE", 0.3)
    assert devices.read().reason.startswith("it does not answer")


def test_what_a_gpu_does_not_know_of_itself_is_no_fault():
    row = GOOD.replace("Default, 0", "[N/A], [N/A]").split(",")
    assert (
        devices.judge(devices.Seen((devices._device(row),)), {"torch": "2.13.0", "cuda": "12.8"}, Need())[0].level
        == "ok"
    )
