"""The list of seeded faults fits the sources. `python -m tests.mutations` tries them, which takes its time."""

from pathlib import Path

import pytest
from mutations.mutants import MUTANTS
from mutations.selection import FAMILIES, runs_of, stages_of
from mutations.trial import STARTED

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_fault_is_a_change_of_one_place(mutant):
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    assert mutant.old != mutant.new


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_every_family_has_tests_that_make_check_runs():
    runs = runs_of(ROOT, ["test", "emulated"])
    for family, kind in {(mutant.family, mutant.kind) for mutant in MUTANTS}:
        assert family in FAMILIES
        assert stages_of(ROOT, runs, family, kind), (family, kind)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("", None),
        (" PASSED  [ 3%]", "PASSED"),
        (" SKIPPED (no GPU)", "SKIPPED"),
        (" Fatal Python error: Aborted", None),
    ],
)
def test_a_test_is_known_by_its_line(said, verdict):
    name = "tests/test_here.py::test_it[hard-an id with spaces-float32]"
    assert STARTED.match(name + said).groups() == (name, verdict)
