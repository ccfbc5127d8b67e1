import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import WIDTH
from tests.helpers.hostile import Payload


@pytest.fixture
def marker(tmp_path):
    """A file that does not exist as long as nothing was unpickled."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(path))).close()
    assert path.exists(), "the payload works, else these tests show nothing"
    path.unlink()
    return path


@pytest.fixture
def pickles(marker, tmp_path):
    """Files that execute code when they are read as a pickle: torch's own format and a plain one."""
    torch.save({"features.0.weight": Payload(marker)}, tmp_path / "zip.pth")
    torch.load(tmp_path / "zip.pth", weights_only=False)["features.0.weight"].close()
    marker.unlink()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(marker)))
    return [tmp_path / "zip.pth", tmp_path / "plain.pth"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, local_ray):
    """A run of two classes in one shard."""
    from dgn.jobs.common.flags import load_settings
    from dgn.jobs.render import render
    from dgn.runs.config import RunConfig

    folder = tmp_path_factory.mktemp("run") / "r"
    settings = {"targets": ["classes:0-1"], "discriminator": "vgg16-mini", "width": WIDTH, "updates": 3, "views": 1}
    render(str(folder), load_settings(RunConfig, None, settings | {"precision": "float32", "workers": "1"}))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy to tamper with. It has no index, so that questions are answered from its rows."""
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("index")))
