"""Whose class a photograph is said to have, by its folder or its name, and how many have none."""

import numpy as np
import pytest
import torch
from PIL import Image

from dgn.errors import DgnError
from dgn.networks.weights import load_weights
from dgn.pictures.accuracy import measure_accuracy
from tests.helpers.own_networks import Own, conv, network

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # of the classes 0, 1 and 2


@pytest.fixture(scope="module")
def sees_colours():
    """Makes a network whose classes are the three colours."""
    stem = conv(3)
    with torch.no_grad():
        stem.weight.copy_(torch.eye(3)[:, :, None, None].expand(stem.weight.shape)), stem.bias.zero_()
    module = Own(lambda s, x: s.fc(s.stem(x).mean((2, 3))), stem=stem, fc=torch.nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        module.fc.weight.copy_(torch.eye(3))
    return lambda *labels: load_weights(network(module, name="colours", labels=labels))


def photographs(folder, **colours):
    """Photographs of one colour each, by their paths."""
    for path, colour in colours.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), COLOURS[colour], np.uint8)).save(folder / path)
    return folder


@pytest.mark.parametrize(
    ("labels", "colours", "without_class"),
    [
        (("dog", "cat", "cow"), {"dog/0002_a.jpg": 0, "cats/0000_b.jpg": 1, "cow/0001_c.jpg": 2}, 0),
        (("dog", "cat", "cow"), {"dog/2008_000123.jpg": 0, "cat/2009_1.jpg": 1, "horse/0000_2.jpg": 1}, 1),
        (("1", "10", "2"), {"1/a.jpg": 0, "10/b.jpg": 1, "2/c.jpg": 2, "0/d.jpg": 1}, 1),
        (("dog", "cat", "cow"), {"0/2_a.jpg": 0, "1/b.jpg": 1, "2/c.jpg": 2, "3/0_d.jpg": 1}, 1),
        ((), {"0/2_a.jpg": 0, "1/b.jpg": 1}, 0),
        ((), {"0_a.jpg": 0, "01_b.jpg": 1, "val/2_c.jpg": 2, "7_d.jpg": 0, "e.jpg": 0}, 2),
        (("dog", "cat", "cow"), {"some/0_a.jpg": 0, "some/1_b.jpg": 1}, 0),
    ],
)
def test_a_photographs_class_is_its_folders_label_then_its_folders_number_then_its_own(
    labels, colours, without_class, sees_colours, tmp_path
):
    found = measure_accuracy(sees_colours(*labels), photographs(tmp_path / "2", **colours))
    assert (found.num_photographs, found.num_without_class) == (len(colours) - without_class, without_class)
    assert (found.first, found.num_unreadable) == (1, 0)


def test_photographs_that_cannot_be_read_are_counted(sees_colours, tmp_path):
    photographs(tmp_path, **{"0_a.jpg": 0, "1_b.jpg": 1})
    (tmp_path / "2_c.jpg").write_bytes(b"cut off")
    found = measure_accuracy(sees_colours(), tmp_path)
    assert (found.num_photographs, found.num_unreadable, found.num_without_class) == (2, 1, 0)


def test_photographs_without_a_class_are_one_line(sees_colours, tmp_path):
    photographs(tmp_path, **{"a.jpg": 0, "7_b.jpg": 1})
    with pytest.raises(DgnError, match="has no photographs with a class: expected folders named as the 3 classes"):
        measure_accuracy(sees_colours(), tmp_path)
    with pytest.raises(DgnError, match="no folder of photographs at"):
        measure_accuracy(sees_colours(), tmp_path / "none")
