import os

import pytest
import torch

import evenlens.datasets
import evenlens.engine
from tests import fake

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every test has a cache of its own, and no data set of the machine."""
    monkeypatch.setenv("EVENLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVENLENS_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The data set `tiny` exists in tests only."""
    original = evenlens.datasets.get
    monkeypatch.setattr(evenlens.datasets, "get", lambda name: fake.Tiny if name == "tiny" else original(name))


@pytest.fixture
def real_data(request):
    """The folder with real images, where there is one."""
    root = os.environ.get("EVENLENS_TEST_DATA")
    if not root:
        pytest.skip("real images: set EVENLENS_TEST_DATA to a folder that holds utkface/ and fairface/")
    return root
