"""The examples do what they say: each trains a student from end to end and prints the terms it learnt from."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDS = {"plain_loop": (), "lightning_trainer": ("lightning",), "hf_trainer": ("transformers", "accelerate")}


@pytest.fixture
def own_threads():
    """Put back what the examples set for the whole process."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NEEDS)
def test_the_student_learns_from_every_term(name, capsys, monkeypatch, own_threads):
    for package in NEEDS[name]:
        pytest.importorskip(package, reason=f"examples/{name}.py needs {package}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 80
    assert runpy.run_path(str(path))["main"]() > 80.0  # of four classes
    printed = capsys.readouterr().out
    for term in ("ce", "kl", "boundary", "triplet"):
        values = [float(value) for value in re.findall(rf"\b{term}\b\W+(\d+\.?\d*)", printed)]
        assert values, term
        assert max(values) > 0.0, term
