"""What a GPU's checks look at, as far as a CPU can show it."""

from __future__ import annotations

import torch

from benchmarks.gpu import calls, checks


def test_a_rehearsal_goes_through_it_all(capsys, tmp_path):
    assert checks.main(["--dry-run", "--out", str(tmp_path / "checks.json")]) == 0
    told = capsys.readouterr().out
    assert "0 anchors with a worse pair" in told
    assert all(str(call) in told for call in calls.small())


def test_a_worse_pair_is_found(monkeypatch):
    rows, labels = checks.labelled(64, 8, torch.float32, "cpu")
    labels %= 4
    assert checks.worse(rows, labels) == 0
    select = checks.triplet.selector("cpu")

    def first(*given):
        positive, negative = select(*given)
        return positive, negative.roll(1, 0)

    monkeypatch.setattr(checks.triplet, "selector", lambda device: first)
    assert checks.worse(rows, labels) > 32
