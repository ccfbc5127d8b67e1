"""What a run's pictures have in common. tests/jobs/test_report.py counts all statistics again."""

import pytest

from dgn.runs.statistics import pattern


@pytest.mark.parametrize(
    ("reason", "common"),
    [
        ("rank 12 on the saved picture: day 3: 7-up is first", "rank N on the saved picture: another is first"),
        ("the activation fell from 1.5e-05 to 0.25", "the activation fell from N to N"),
        ("conv1_1 was silent after 300 updates.", "conv1_1 was silent after N updates."),
        ("1" * 300 + "a", "1" * 300 + "a"),
    ],
)
def test_what_reasons_have_in_common(reason, common):
    assert pattern(reason) == common
