"""`dgn info` and `dgn doctor`: what a configuration costs, and whether this machine is ready."""

import json

import numpy as np
import pytest

from dgn.networks.embedded.drawings import draw
from dgn.pictures.codec import encode_png


def test_info_counts(dgn):
    content = json.loads(dgn("info", "--preset", "paper", "--json")[1])
    assert content["modes"]["untrained"]["num_trainable"] == 5_240_841
    assert content["modes"]["pretrained"]["num_trainable"] == 3_200
    assert content["targets_all"] == 6224
    assert content["targets_all_in_both_modes"] == 10_448
    assert content["layers"]["conv5_3"] == 512
    # docs/method.md: VGG-16 takes 15.5 GMAC forward and as many to the input; a generator with exact phases costs less
    # than the plain 60 GFLOP.
    assert content["modes"]["untrained"]["classifier_ops_per_view"] == pytest.approx(4 * 15.5e9, rel=0.01)
    assert 40e9 < content["modes"]["untrained"]["generator_ops_per_update"] < 60e9
    assert "conv1_1 8" in dgn("info", "--discriminator", "vgg16-mini", "--layers")[1]
    assert "vgg16-mini-b" in dgn("info", "--networks")[1]
    assert "5,240,841 trainable variables" in dgn("info", "--preset", "paper")[1]


def test_doctor(dgn, tmp_path):
    code, out, _ = dgn("doctor", tmp_path, "--discriminator", "vgg16-mini")
    assert code == 0
    assert f"ok  store {tmp_path} can be written; of 8 writers at once, one created each of 4 keys\n" in out
    assert "ok  device" in out
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_that_weights_are_missing(dgn, tmp_path):
    code, out, err = dgn("doctor", "--weights", tmp_path / "none.pth")
    assert (code, err.count("\n")) == (1, 1)
    assert "--  weights: no weights file at " in out
    assert "vgg16 has no weights here: give --weights FILE" in err


def test_doctor_says_how_many_photographs_it_left_out(dgn, tmp_path):
    for folder, label in (("star", "star"), ("hearts", "heart"), ("dragon", "star")):
        (tmp_path / folder).mkdir()
        for seed in range(2):
            picture = draw(label, np.random.default_rng(seed))
            (tmp_path / folder / f"{seed:04d}_a.png").write_bytes(encode_png(picture))
    code, out, _ = dgn("doctor", "--discriminator", "vgg16-mini", "--images", tmp_path)
    assert code == 0
    assert "ok  accuracy of vgg16-mini on 4 photographs: 100% first" in out
    assert "    left out photographs: 2 without a class\n" in out
