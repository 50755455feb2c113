"""Libraries that are missing, too old, too new, or do not fit each other are told of, with what to install."""

from packaging.requirements import Requirement

from samestep.launch.health.finding import Need
from samestep.launch.health.libraries import judge, requirements
from tests.launch.health.sick import TINY, TORCH, doctor, one, package

BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")'


def test_torch_that_is_too_old(tmp_path):
    packages = package(tmp_path / "p", "torch", TORCH.format(version="2.5.1", cuda=None), Version="2.5.1")
    told = one(doctor(tmp_path, packages=packages, code=4), "packages", "failure", "torch 2.5.1 is here")
    assert told["fix"] == "pip install 'torch<2.16,>=2.11'"


def test_torch_that_is_newer_than_what_was_tried(tmp_path):
    packages = package(tmp_path / "p", "torch", TORCH.format(version="3.1", cuda=None), Version="3.1")
    one(doctor(tmp_path, packages=packages, code=0), "packages", "warning", "torch 3.1 is here", "nobody has tried it")


def test_torch_that_cannot_be_imported(tmp_path):
    packages = package(tmp_path / "p", "torch", "raise ImportError('libcudart.so.13: cannot open shared object file')")
    found = doctor(tmp_path, packages=packages, code=4)
    one(found, "torch", "failure", "torch cannot be imported (ImportError: libcudart.so.13")


def test_transformers_of_another_time(tmp_path):
    packages = package(tmp_path / "p", "torch", TORCH.format(version="2.13.0", cuda=None))
    package(packages, "transformers", "", Version="4.57.6")
    one(doctor(tmp_path, packages=packages, code=4), "packages", "failure", "transformers 4.57.6 is here")


def test_torchvision_that_breaks_what_imports_it(tmp_path):
    packages = package(tmp_path / "p", "torch", TORCH.format(version="2.13.0+cpu", cuda=None))
    package(packages, "torchvision", BROKEN, Version="0.28.0", Requires_Dist="torch (==2.13.0)")
    found = doctor(tmp_path, packages=packages, code=0)
    said = "torchvision 0.28.0 cannot be imported beside torch 2.13.0+cpu (operator torchvision::nms does not exist)"
    one(found, "packages", "warning", said)
    assert (
        judge([], {}, None, {"torch": "2.13.0", "torchvision": "1", "beside_error": "x"}, Need(transformers=True))[
            0
        ].level
        == "failure"
    )


def test_torchvision_that_was_built_for_another_torch(tmp_path):
    packages = package(tmp_path / "p", "torch", TORCH.format(version="2.13.0", cuda=None))
    package(packages, "torchvision", "", Version="0.20.0", Requires_Dist="torch (==2.5.0)")
    found = doctor(tmp_path, packages=packages, code=0)
    one(found, "packages", "warning", "torchvision 0.20.0 was built for torch 2.5.0")


def test_a_library_that_is_not_there():
    found = judge([Requirement("peft>=0.21,<0.22")], {"peft": None}, None, {"torch": "2.13.0"}, Need())
    assert [(each.level, each.what) for each in found] == [("failure", "peft is not installed")]


def test_what_is_asked_for_is_what_the_package_says():
    names = {each.name for each in requirements()}
    assert {"torch", "transformers", "safetensors"} <= names and "pytest" not in names


def test_the_torch_here_is_imported_and_fits(tmp_path):
    packages = tmp_path / "none"
    packages.mkdir()
    found = doctor(tmp_path, TINY, packages=packages)
    assert not [each for each in found if each["check"] in ("torch", "packages", "gpu")]
