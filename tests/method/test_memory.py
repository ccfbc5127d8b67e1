"""A device that runs out of memory: smaller batches, the same results."""

import gc
import logging
import weakref

import pytest
import torch

from dgn.method import loop
from dgn.method.engine import Engine
from dgn.method.loop import render_batch, render_targets
from dgn.method.memory import if_it_fits, in_batches, is_out_of_memory
from tests.helpers.targets import class_targets, filter_target


class Device(Engine):
    """Has room for so many items at once, and counts how often memory is returned to it."""

    def __init__(self, room):
        super().__init__()
        self.room, self.sizes, self.num_releases = room, [], 0

    def release_memory(self):
        self.num_releases += 1

    def squares(self, items):
        self.sizes.append(len(items))
        if len(items) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(items)}")
        return [item**2 for item in items]


def more_than_there_is():
    return torch.empty(2**60, dtype=torch.uint8)


def while_a_graph_is_recorded():
    try:
        more_than_there_is()
    finally:
        raise RuntimeError("capture failed")


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        more_than_there_is()
    assert is_out_of_memory(caught.value), "the CPU allocator's own"
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="capture failed") as caught:
        while_a_graph_is_recorded()
    assert is_out_of_memory(caught.value), "what it becomes while a graph is recorded"


def test_an_attempt_gives_its_result_or_none():
    device = Device(room=0)
    assert if_it_fits(lambda: 3, device) == 3
    assert device.num_releases == 0
    assert if_it_fits(more_than_there_is, device) is None
    assert device.num_releases == 1
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        if_it_fits(_fail, device)


def _fail():
    raise RuntimeError("shapes do not fit")


def test_what_a_failed_attempt_held_is_free_before_memory_is_returned():
    held = []

    class Watching(Engine):
        def release_memory(self):
            assert held[0]() is None

    def work():
        tensor = torch.zeros(10)
        held.append(weakref.ref(tensor))
        cycle = [tensor]
        cycle.append(cycle)
        return more_than_there_is()

    gc.disable()
    try:
        assert if_it_fits(work, Watching()) is None
    finally:
        gc.enable()
    assert len(held) == 1


@pytest.mark.parametrize(
    ("room", "sizes", "halved"),
    [
        (9, [7], []),
        (4, [7, 3, 3, 1], [3]),
        (2, [7, 3, 1, 1, 1, 1, 1, 1, 1], [3, 1]),
        (1, [7, 3, 1, 1, 1, 1, 1, 1, 1], [3, 1]),
    ],
)
def test_batches_are_halved_until_they_fit_and_no_result_is_lost(room, sizes, halved, caplog):
    device, noted = Device(room), []
    batches = list(in_batches(range(7), 8, device.squares, device, noted.append))
    assert [square for batch in batches for square in batch] == [item**2 for item in range(7)]
    assert device.sizes == sizes
    assert noted == halved
    assert device.num_releases == len(halved)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * len(halved)


def test_results_of_earlier_batches_are_kept_and_not_computed_again():
    """Memory becomes scarce halfway."""
    device = Device(room=4)
    batches = in_batches(range(8), 4, device.squares, device)
    assert next(batches) == [0, 1, 4, 9]
    device.room = 2
    assert list(batches) == [[16, 25], [36, 49]]
    assert device.sizes == [4, 4, 2, 2]


def test_a_single_item_that_does_not_fit_raises_the_original_error():
    device = Device(room=0)
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        list(in_batches(range(4), 4, device.squares, device))
    assert device.sizes == [4, 2, 1]


def test_nothing_to_do_is_no_batch():
    assert list(in_batches([], 4, Device(room=0).squares, Engine())) == []


def test_a_batch_of_targets_that_does_not_fit_is_halved(quick_config, mini, monkeypatch):
    sizes = []

    def small_device(targets, *args):
        sizes.append(len(targets))
        if len(targets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return render_batch(targets, *args)

    monkeypatch.setattr(loop, "render_batch", small_device)
    targets = class_targets(range(5))
    results = [result for batch in render_targets(targets, quick_config, mini, batch_size=5) for result in batch]
    assert [result.target for result in results] == targets
    assert sizes == [5, 2, 2, 1]


def test_other_errors_are_not_taken_for_out_of_memory(quick_config, mini):
    targets = [filter_target("nowhere", 0), filter_target("nowhere", 1)]
    for some in (targets, targets[:1]):
        with pytest.raises(KeyError):
            list(render_targets(some, quick_config, mini))
