"""Every public name is still where it was, for one release, and says where it is now."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

from amkd_fast import _moved, methods

# By its old module, as it was called there.
OLD = {
    "amkd_fast.distill.bar": "bar",
    "amkd_fast.distill.batch": "Batch",
    "amkd_fast.distill.choice": "LISTENING attack_options boundary_attack boundary_weight check method",
    "amkd_fast.distill.claim": "claimed",
    "amkd_fast.distill.continuation": "CONFIG RUN read_json start stored",
    "amkd_fast.distill.door": "BAD_INPUT BUG CODES DIVERGED INTERRUPTED OK STOPPING guarded say",
    "amkd_fast.distill.experiment": (
        "ALONE AtomicCheckpointIO OwnSignals PRECISIONS Run TEACHER_SEED describe fit load_teacher obtain_teacher "
        "prepare rehearse told train_student train_teacher"
    ),
    "amkd_fast.distill.journal": "COLUMNS Journal PARTS table",
    "amkd_fast.distill.launch": "launched",
    "amkd_fast.distill.methods": (
        "AMKD BN_POLICIES BSS Batch CCD COUNTS Constant DKD Delayed ExtendedKD Falling KD Linear LogitsOf Losses "
        "MKD Method Moment OFFICIAL_BOUNDARY OFFICIAL_KL RKD Rising Schedule StudentAlone TALD TripletKD "
        "ZOO_BOUNDARY frozen_statistics statistics_of unchanged_statistics"
    ),
    "amkd_fast.distill.methods.base": "COUNTS Losses Method Moment",
    "amkd_fast.distill.methods.boundary": "AMKD BSS Chosen",
    "amkd_fast.distill.methods.decoupled": "DKD",
    "amkd_fast.distill.methods.features": "with_features",
    "amkd_fast.distill.methods.logits": "LogitsOf",
    "amkd_fast.distill.methods.mixing": "MKD Mixed",
    "amkd_fast.distill.methods.normalisation": "BN_POLICIES frozen_statistics statistics_of unchanged_statistics",
    "amkd_fast.distill.methods.particles": "TALD",
    "amkd_fast.distill.methods.plain": "KD StudentAlone",
    "amkd_fast.distill.methods.relational": "RKD SPACES",
    "amkd_fast.distill.methods.schedules": (
        "Constant DECOUPLED_RISE Delayed Falling Linear OFFICIAL_BOUNDARY OFFICIAL_KL Rising Schedule "
        "ZOO_BOUNDARY as_schedule"
    ),
    "amkd_fast.distill.methods.stages": "ExtendedKD find_stages",
    "amkd_fast.distill.methods.triplets": "TripletKD",
    "amkd_fast.distill.methods.views": "CCD",
    "amkd_fast.distill.models": (
        "About Callbacks Evaluable FORMAT FinishedRun FitLoop Group Network Optimizer Rows RunFile Scheduler "
        "Stored Torchrun Training check checked first of_settings rule settings"
    ),
    "amkd_fast.distill.module": "Distillation cosine",
    "amkd_fast.distill.networks.users": "find",
    "amkd_fast.distill.plan": "ATTACKS KEEPS LOSSES NORMS Plan TARGETS",
    "amkd_fast.distill.probe": "IMAGES PRESETS Probe probe",
    "amkd_fast.distill.qualities": (
        "BINS EVERY OF_DROPPED_LABELS OF_THE_TEACHER PRESET QUALITIES Quality STEPS TARGETS attacked "
        "calibration_error divergence measure pgd_accuracy protocol radius"
    ),
    "amkd_fast.distill.report.text": "EPOCHS SUMMARY chance finite summary_csv to_csv to_json",
    "amkd_fast.distill.result": "MARKER partial_of result_folder",
    "amkd_fast.distill.subject": "check_network images_for normalisation",
    "amkd_fast.distill.torchvision": "NAME is_aside put_aside",
    "amkd_fast.distill.world": "World joined",
    "amkd_fast.losses.consistency": "ConsistencyLoss",
    "amkd_fast.losses.decoupled": "DKDLoss",
    "amkd_fast.losses.faces": "DistillationLoss KLDivLoss TripletMarginLoss",
    "amkd_fast.losses.standardised": "StandardisedKLLoss",
}


@pytest.fixture
def anew(monkeypatch):
    """As if nobody had imported anything by an old name."""
    for module in OLD:
        parent, _, child = module.rpartition(".")
        if parent in sys.modules:
            monkeypatch.delattr(sys.modules[parent], child, raising=False)
    for module in OLD:
        monkeypatch.delitem(sys.modules, module, raising=False)


def test_nothing_is_forgotten():
    assert set(OLD) == set(_moved.MODULES)


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("module", OLD)
def test_the_old_name_warns_and_gives_what_the_new_one_has(module):
    with pytest.warns(DeprecationWarning, match=f"^{module} is {_moved.MODULES[module][0]}"):
        old = importlib.import_module(module)
    today = [vars(importlib.import_module(name)) for name in _moved.MODULES[module]]
    for name in OLD[module].split():
        now = _moved.NAMES.get(name, name)
        assert any(now in found and getattr(old, name) is found[now] for found in today), name


@pytest.mark.usefixtures("anew")
def test_imports_of_every_form():
    with pytest.warns(DeprecationWarning, match="amkd_fast.methods now"):
        from amkd_fast.distill.methods import AMKD, Moment
    with pytest.warns(DeprecationWarning, match="amkd_fast.methods.bss and amkd_fast.methods.amkd now"):
        from amkd_fast.distill.methods.boundary import BSS
    with pytest.warns(DeprecationWarning, match="amkd_fast.distill.build now") as caught:
        from amkd_fast.distill import choice
    assert caught[0].filename == __file__  # the line to change
    assert (AMKD, BSS, Moment) == (methods.AMKD, methods.BSS, methods.StepContext)
    assert choice.method.__module__ == "amkd_fast.distill.build"


def test_what_never_was_is_still_missing():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("amkd_fast.distill.nowhere")


def test_nothing_of_ours_is_imported_by_an_old_name():
    root, found = Path(__file__).parents[1], []
    for path in [*root.glob("amkd_fast/**/*.py"), *root.glob("examples/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                found += [f"{path}: {name}" for name in names if name in OLD]
    assert not found
