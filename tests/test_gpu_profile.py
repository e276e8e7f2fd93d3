"""What is read out of a profiler's events."""

from __future__ import annotations

import pytest

from benchmarks.gpu import calls, checks, profile
from benchmarks.gpu.profile import Span


def test_gaps_are_where_nothing_runs():
    spans = [Span("conv", 0, 10_000), Span("amkd::x", 5_000, 12_000), Span("memset", 12_500, 13_000)]
    found = profile.summary([*spans, Span("amkd::x", 20_000, 21_000)], host=50_000)
    assert found["busy_us"] == pytest.approx(13.5)
    assert found["device_us"] == pytest.approx(21.0)
    assert found["idle_share"] == pytest.approx(7.5 / 21)
    assert found["gaps"] == 1  # half a microsecond is none
    assert found["longest_gap_us"] == pytest.approx(7.0)
    assert found["launches"] == 4
    assert found["kernels"] == {"conv": 10.0, "amkd::x": pytest.approx(8.0), "memset": 0.5}
    assert profile.table({"headline": [{"call": "a call", **found}], "steps": [{"call": "a step", **found}]})


def test_nothing_on_the_device_is_no_time():
    assert profile.summary([], host=1)["idle_share"] is None


def test_every_call_has_a_direction_of_its_group():
    for call in (*calls.small(), *calls.headline(), *calls.rehearsal()):
        assert call.way in call.group.directions or call.group.family == "segments"
    for call in (*calls.headline(), *calls.rehearsal()):
        assert call.work.bytes > 0


def test_a_worse_pair_is_found(monkeypatch):
    rows, labels = checks.labelled(64, 8, checks.torch.float32, "cpu")
    labels %= 4
    assert checks.worse(rows, labels) == 0
    select = checks.triplet.selector("cpu")

    def first(*given):
        positive, negative = select(*given)
        return positive, negative.roll(1, 0)

    monkeypatch.setattr(checks.triplet, "selector", lambda device: first)
    assert checks.worse(rows, labels) > 32
