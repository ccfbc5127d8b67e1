"""Directions in the space of a layer's units, from NumPy files."""

import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dgn.errors import TargetError
from dgn.method.loop import render_batch
from dgn.method.objectives import along
from dgn.method.recipes import Moves, RenderConfig
from dgn.networks.directions import with_absolute_path
from dgn.networks.layers import Layers
from dgn.networks.specs import parse_targets
from dgn.pictures.scoring import score_results
from dgn.runs.plan import Plan
from dgn.targets import Target
from tests.conftest import NARROW


def parsed(mini, spec):
    [block] = parse_targets([spec], mini.layers, None)
    return block


def test_each_row_is_a_target_of_length_1(mini, tmp_path):
    np.save(tmp_path / "concepts.npy", np.array([[3.0, 4.0, *[0] * 30], [0, 0, -2.0, *[0] * 29]]))
    block = parsed(mini, f"direction:conv3_1:{tmp_path}/concepts.npy:dot")
    first, second = block
    assert [(u.unit, u.weight) for u in first.units] == [(0, 0.6), (1, 0.8)]
    assert [(u.unit, u.weight) for u in second.units] == [(2, -1.0)]
    assert {first.measure, second.measure} == {"dot"}
    assert first.target_id.startswith("conv3_1-dot-concepts-00000-")
    assert (mini.layers.label(second), second.unit, second.is_negative) == ("concepts-00001", None, False)


WIDE = Layers("wide", {"codes": 2048}, None, (), (), {})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_plan_of_many_directions_is_as_large_as_their_file(dtype, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(64, 2048)).astype(dtype)
    np.save(tmp_path / "features.npy", np.asfortranarray(vectors))
    plan = Plan(parse_targets([f"direction:codes:{tmp_path}/features.npy"], WIDE, None), shard_size=32)
    travelled = pickle.dumps(plan)
    assert len(travelled) < vectors.nbytes + 5_000
    again = pickle.loads(travelled)
    assert again.targets_sha256() == plan.targets_sha256()
    last = again.shard(1).targets[-1]
    assert last == plan.shard(1).targets[-1]
    assert [u.weight for u in last.units] == list(vectors[-1].astype(float) / np.linalg.norm(vectors[-1].astype(float)))
    assert plan_sha256(vectors * 2, tmp_path) != plan.targets_sha256() == plan_sha256(vectors, tmp_path)


def plan_sha256(vectors, folder):
    np.save(folder / "features.npy", vectors)
    return Plan(parse_targets([f"direction:codes:{folder}/features.npy"], WIDE, None), 32).targets_sha256()


def test_names_of_directions_stay_what_they_were(mini, tmp_path):
    np.save(tmp_path / "v.npy", np.arange(-16, 16) / 8)
    [target] = parsed(mini, f"direction:conv3_1:{tmp_path}/v.npy")
    assert target.target_id == "conv3_1-cosine-v-f1b60a7c-untrained-s0"


def test_the_same_direction_in_two_files_is_one_target(mini, tmp_path):
    rows = np.eye(32)[:3]
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", np.float32(7) * rows[2:].astype(np.float32))
    [block] = parse_targets([f"direction:conv3_1:{tmp_path}/{name}.npy" for name in "ab"], mini.layers, None)
    assert [[(u.unit, u.weight) for u in target.units] for target in block] == [[(0, 1)], [(1, 1)], [(2, 1)]]


def test_the_cosine_and_the_projection():
    response, direction = torch.tensor([[3.0, 4.0, 12.0]]), torch.tensor([[0.6, 0.8, 0.0]])
    assert along(response, direction, "dot").item() == pytest.approx(5)
    assert along(response, direction, "cosine").item() == pytest.approx(5 / 13)


def test_a_picture_turns_towards_its_direction_and_is_scored_by_it(mini, tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=32))
    target = next(iter(parsed(mini, f"direction:conv3_1:{tmp_path}/v.npy")))
    config = RenderConfig.from_preset("draft", num_updates=30, num_views=1, width=NARROW, moves=Moves())
    [result] = render_batch([target], config, mini)
    [scored] = score_results([result], mini)
    assert result.activation_curve[-1] > result.activation_curve[0]
    response = mini.responses(torch.tensor(scored.picture_HW3).permute(2, 0, 1)[None] / 255, ["conv3_1"])["conv3_1"]
    values = response.mean((2, 3))[0].double().numpy()
    vector = np.load(tmp_path / "v.npy")
    cosine = values @ vector / np.linalg.norm(values) / np.linalg.norm(vector)
    assert scored.scores.activation == pytest.approx(cosine, abs=1e-5)
    assert (scored.scores.rank, scored.scores.probability) == (None, None)
    assert scored.status == ("ok" if cosine > result.activation_curve[0] else "not_converged")
    other = replace(target, measure="dot")
    assert isinstance(other, Target)
    assert other.target_id != target.target_id


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones(31), r"array of shape \(31,\): expected 32 numbers, one per unit of conv3_1"),
        (np.ones((2, 2, 32)), "expected 32 numbers"),
        (np.zeros(32), "has the length 0: expected finite numbers"),
        (np.full(32, np.nan), "has the length nan"),
        (np.array(["a"] * 32), "expected 32 numbers"),
        (np.ones((2, 32)), "are the same direction: leave one out"),
        (np.array([[0.0, *[1] * 31], [-0.0, *[2] * 31]]), "v-00001 and v-00000 in .* are the same direction"),
    ],
)
def test_what_is_no_direction_is_one_line(array, says, mini, tmp_path):
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(TargetError, match=says):
        parsed(mini, f"direction:conv3_1:{tmp_path}/v.npy")


def cut_off_archive():
    buffer = io.BytesIO()
    np.savez(buffer, np.ones(32))
    return buffer.getvalue()[:60]


def with_shape(shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00v\x00" + header.encode().ljust(117) + b"\n" + bytes(256)


@pytest.mark.parametrize(
    "content",
    [b"", b"1 2 3 4", cut_off_archive(), with_shape("(100000000000, 32)"), with_shape("(32,"), with_shape("(032,)")],
)
def test_a_damaged_file_is_one_line(content, mini, tmp_path):
    (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(
        TargetError, match=r"cannot read the direction in '.*v.npy': .*; expected a .npy file"
    ) as caught:
        parsed(mini, f"direction:conv3_1:{tmp_path}/v.npy")
    assert "\n" not in str(caught.value)


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_absolute_path("direction:conv3_1:v.npy:dot") == f"direction:conv3_1:{tmp_path}/v.npy:dot"
    assert with_absolute_path("classes:v.npy") == "classes:v.npy"
