"""`dgn info` and `dgn doctor`: what a configuration costs, and whether this machine is ready."""

import json

import pytest


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
    assert "supports create-once" in out
    assert "ok  device" in out
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_that_weights_are_missing(dgn, tmp_path):
    code, out, err = dgn("doctor", "--weights", tmp_path / "none.pth")
    assert (code, err.count("\n")) == (1, 1)
    assert "--  weights: no weights file at " in out
    assert "vgg16 has no weights here: give --weights FILE" in err
