import pytest

from dgn.method import batch


@pytest.fixture
def poison_the_next_start(monkeypatch):
    """Once called: the next target to start has weights that are not numbers."""
    real_start = batch.initial_weights

    def poison():
        calls = []

        def poisoned(architecture, stream):
            calls.append(1)
            weights = real_start(architecture, stream)
            return {n: w * float("nan") for n, w in weights.items()} if len(calls) == 1 else weights

        monkeypatch.setattr(batch, "initial_weights", poisoned)

    return poison
