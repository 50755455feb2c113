"""Whatever a test of an engine has started is gone at its end."""

import psutil
import pytest


def children():
    return psutil.Process().children(recursive=True)


@pytest.fixture
def nothing_is_left():
    before = set(children())  # such as the resource tracker of multiprocessing, which other tests start
    yield
    assert set(children()) <= before
