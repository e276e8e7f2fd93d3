"""What a GPU's checks look at, as far as a CPU can show it."""

from __future__ import annotations

import pytest

from benchmarks import contest, gpu_checks
from benchmarks.group import prepare
from benchmarks.groups import triplet


def test_a_rehearsal_goes_through_it_all(capsys, tmp_path):
    assert gpu_checks.main(["--dry-run", "--out", str(tmp_path / "checks.json")]) == 0
    told = capsys.readouterr().out
    assert all(str(call) in told for call in gpu_checks.small())


@pytest.mark.parametrize("part", ["positive", "negative"])
def test_a_worse_pair_is_found(monkeypatch, part):
    """By the group that selects the most rows on a GPU, which is timed only after this check."""
    if not contest.backend_names("triplet", "cpu"):
        pytest.skip("the CPU kernels are not built")
    group, select = triplet.select(64, 8, 4), triplet.selector("cpu")
    assert "amkd_fast cpu" in {entry.title for entry in prepare(group, "cpu").errors}

    def another(*given):
        positive, negative = select(*given)
        return (positive.roll(4, 0), negative) if part == "positive" else (positive, negative.roll(4, 0))

    monkeypatch.setattr(triplet, "selector", lambda device: another)
    with pytest.raises(contest.WrongResult):
        prepare(group, "cpu")
