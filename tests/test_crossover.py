"""Which backend a size gets, and the table that says so."""

from __future__ import annotations

import json

import pytest
import torch

import amkd_fast as af
from amkd_fast import backends
from benchmarks import counters, crossover, machine

ABOUT = {"cpu": "a chip", "threads": 2, "torch": "2.13", "python": "3.11", "amkd_fast": "0", "commit": "c0ffee"}
ABOUT |= {"gpu": None, "date": "2026-11-22T00:00:00", "load": 0.0}


def report(*rows):
    """Of (backend, elements, median, p90)."""
    return {
        "machine": ABOUT,
        "rows": [
            {"family": "kl", "backend": name, "elements": elements, "ratio": {"median": median, "p90": high}}
            for name, elements, median, high in rows
        ],
    }


def test_a_backend_is_taken_from_where_it_is_never_slower():
    found = report(("cpu", 10, 0.5, 0.6), ("cpu", 100, 0.8, 0.9), ("cpu", 1000, 3.0, 4.0), ("triton", 10, 2.0, 3.0))
    assert crossover.table([found]) == {("kl", "cpu"): 101, ("kl", "triton"): 0}


def test_a_doubtful_size_keeps_the_backend():
    assert crossover.table([report(("cpu", 10, 0.9, 1.2))]) == {("kl", "cpu"): 0}


def test_the_module_says_where_its_numbers_are_from():
    space: dict = {}
    text = crossover.module([report(("cpu", 10, 0.5, 0.6))])
    exec(compile(text, "crossover", "exec"), space)
    assert space["SMALLEST"] == {("kl", "cpu"): 11}
    assert "a chip" in space["__doc__"]
    assert "c0ffee" in space["__doc__"]


def test_the_module_in_use_is_that_of_the_committed_measurements():
    assert crossover.main(["--check"]) == 0
    for path in machine.RESULTS.glob("crossover-*.json"):
        assert not json.loads(path.read_text())["machine"]["commit"].endswith("+")


@pytest.mark.skipif(bool(backends.available()["kl"]["cpu"]), reason=backends.available()["kl"]["cpu"])
def test_a_small_call_passes_a_backend_over_silently(monkeypatch):
    monkeypatch.setitem(backends.SMALLEST, ("kl", "cpu"), 100)
    for rows, name in ((9, "reference"), (10, "cpu")):
        logits = torch.zeros(rows, 10)
        af.kl_div(logits, logits)
        assert backends.last("kl") == name
    with backends.backend("cpu"):  # by name it is taken at any size
        af.kl_div(torch.zeros(1, 10), torch.zeros(1, 10))
    assert backends.last("kl") == "cpu"


def test_instructions_are_summed_by_library():
    lines = [
        "Ir                  file:function",
        "2,000 (66.67%)  ???:sweep(float const*) [/somewhere/amkd_fast/_C.cpython-311-x86_64-linux-gnu.so]",
        "  600 (20.00%)  ./malloc/malloc.c:_int_free [/lib/x86_64-linux-gnu/libc.so.6]",
        "  400 (13.33%)  ???:_PyEval_EvalFrameDefault [/usr/bin/python3.11]",
    ]
    found = counters.tally(lines, calls=2)
    assert found["all"] == 1500
    assert found["by_library"] == {"amkd_fast kernels": 1000, "C library": 300, "Python": 200}
    assert next(iter(found["functions"])) == "amkd_fast kernels: sweep(float const*)"


def test_the_slowest_calls_come_from_the_public_functions(tmp_path):
    def row(operation, share, form=""):
        title = "ours, " + form if form else "ours"
        entry = {"share_of_limit": share, "form": form}
        kind = {"family": "kl", "operation": operation, "sizes": {"B": 1}, "dtype": "fp32", "direction": "both"}
        return {**kind, "limit": {"bound": "bytes"}, "ours": title, "contestants": {title: entry}}

    rows = [row("slow", 0.001), row("slow", 0.01), row("fast", 0.9), row("slower", 0.5)]
    rows.append({**row("none", 0.0), "limit": None})
    (tmp_path / "kl-cpu.json").write_text(json.dumps({"kind": "comparison", "groups": rows}))
    found = counters.slowest(tmp_path, 2)
    assert [(row["operation"], row["share"]) for row in found] == [("slow", 0.01), ("slower", 0.5)]
