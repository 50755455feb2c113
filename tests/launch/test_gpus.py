"""Whether there is a GPU is known before anything is made."""

import pytest

from samestep.errors import ClusterError
from samestep.launch.gpus import refuse_no_gpu


def test_a_machine_without_the_driver_is_refused(tmp_path):
    with pytest.raises(
        ClusterError, match=r"no NVIDIA driver's device; use a machine with a GPU, or set compute.device"
    ):
        refuse_no_gpu({}, tmp_path)


@pytest.mark.parametrize("sign", ["dev/nvidia0", "proc/driver/nvidia/gpus/0000:01:00.0", "dev/dxg"])
def test_a_sign_of_the_driver_is_enough(tmp_path, sign):
    (tmp_path / sign).mkdir(parents=True)
    refuse_no_gpu({}, tmp_path)
    refuse_no_gpu({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path)


def test_nvidiactl_alone_is_no_gpu(tmp_path):
    (tmp_path / "dev/nvidiactl").mkdir(parents=True)
    with pytest.raises(ClusterError):
        refuse_no_gpu({}, tmp_path)


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_gpus_are_told_as_that(tmp_path, value):
    (tmp_path / "dev/nvidia0").mkdir(parents=True)
    with pytest.raises(ClusterError, match=r"CUDA_VISIBLE_DEVICES is '.*', which hides all; unset it"):
        refuse_no_gpu({"CUDA_VISIBLE_DEVICES": value}, tmp_path)


def test_a_run_on_cuda_without_one_ends_with_one_line_and_no_folder(samestep, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    done = samestep("train", tiny, "compute.device=cuda", "--run", tmp_path / "run")
    assert done.code == 4 and not (tmp_path / "run").exists()
    assert done.err.count("\n") == 1 and "CUDA_VISIBLE_DEVICES is '-1'" in done.err
