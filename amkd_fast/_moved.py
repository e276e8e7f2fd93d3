"""Old names of modules, for one release: an import by such a name warns, and gives what the new name has.

The finder stands first in ``sys.meta_path``: a directory that an old checkout has left, with nothing but
``__pycache__`` in it, would be found in the place of a package that moved.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Old module: where its names are now.
MODULES = {
    "amkd_fast.distill.bar": ("amkd_fast.distill.progress",),
    "amkd_fast.distill.batch": ("amkd_fast.methods.base",),
    "amkd_fast.distill.choice": ("amkd_fast.distill.build",),
    "amkd_fast.distill.claim": ("amkd_fast.distill.lock",),
    "amkd_fast.distill.continuation": ("amkd_fast.distill.resume",),
    "amkd_fast.distill.door": ("amkd_fast.distill.exit_codes",),
    "amkd_fast.distill.experiment": ("amkd_fast.distill.fit", "amkd_fast.distill.training_runs"),
    "amkd_fast.distill.journal": ("amkd_fast.distill.epoch_log",),
    "amkd_fast.distill.launch": ("amkd_fast.distill.distributed",),
    "amkd_fast.distill.methods": ("amkd_fast.methods",),
    "amkd_fast.distill.methods.base": ("amkd_fast.methods.base",),
    "amkd_fast.distill.methods.boundary": ("amkd_fast.methods.bss", "amkd_fast.methods.amkd"),
    "amkd_fast.distill.methods.decoupled": ("amkd_fast.methods.dkd",),
    "amkd_fast.distill.methods.features": ("amkd_fast.methods.outputs",),
    "amkd_fast.distill.methods.logits": ("amkd_fast.methods.outputs",),
    "amkd_fast.distill.methods.mixing": ("amkd_fast.methods.mkd",),
    "amkd_fast.distill.methods.normalisation": ("amkd_fast.methods.batchnorm",),
    "amkd_fast.distill.methods.particles": ("amkd_fast.methods.tald",),
    "amkd_fast.distill.methods.plain": ("amkd_fast.methods.kd", "amkd_fast.methods.student_alone"),
    "amkd_fast.distill.methods.relational": ("amkd_fast.methods.rkd",),
    "amkd_fast.distill.methods.schedules": ("amkd_fast.methods.schedules",),
    "amkd_fast.distill.methods.stages": ("amkd_fast.methods.extended_kd",),
    "amkd_fast.distill.methods.triplets": ("amkd_fast.methods.triplet_kd",),
    "amkd_fast.distill.methods.views": ("amkd_fast.methods.ccd",),
    "amkd_fast.distill.models": ("amkd_fast.distill.schemas",),
    "amkd_fast.distill.module": ("amkd_fast.distill.lightning_module", "amkd_fast.distill.lr_schedule"),
    "amkd_fast.distill.networks.users": ("amkd_fast.distill.networks.external",),
    "amkd_fast.distill.plan": ("amkd_fast.distill.evaluate_settings",),
    "amkd_fast.distill.probe": ("amkd_fast.distill.attack_examples",),
    "amkd_fast.distill.qualities": ("amkd_fast.distill.metrics",),
    "amkd_fast.distill.report.text": ("amkd_fast.distill.report.tables", "amkd_fast.distill.files"),
    "amkd_fast.distill.result": ("amkd_fast.distill.result_folder",),
    "amkd_fast.distill.subject": ("amkd_fast.distill.evaluation_data", "amkd_fast.distill.checkpoint"),
    "amkd_fast.distill.torchvision": ("amkd_fast.distill.broken_torchvision",),
    "amkd_fast.distill.world": ("amkd_fast.distill.distributed",),
    "amkd_fast.losses.consistency": ("amkd_fast.losses.kl",),
    "amkd_fast.losses.decoupled": ("amkd_fast.losses.kl",),
    "amkd_fast.losses.faces": ("amkd_fast.losses.kl", "amkd_fast.losses.triplet"),
    "amkd_fast.losses.standardised": ("amkd_fast.losses.kl",),
}
# Old name in such a module: its name now.
NAMES = {
    "Journal": "EpochLog",
    "Moment": "StepContext",
    "Plan": "EvaluateSettings",
    "Probe": "AttackExamples",
    "QUALITIES": "METRICS",
    "Quality": "Metric",
    "bar": "progress_bar",
    "claimed": "locked",
    "joined": "process_group",
    "launched": "torchrun_variables",
    "normalisation": "stored_normalisation",
    "probe": "attack_examples",
}


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        return ModuleSpec(fullname, self, is_package=any(name.startswith(f"{fullname}.") for name in MODULES))

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, MODULES[module.__name__]
        warnings.warn(
            f"{old} is {' and '.join(new)} now; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        found = {k: v for name in new for k, v in vars(importlib.import_module(name)).items() if not k.startswith("__")}
        found |= {was: found[now] for was, now in NAMES.items() if now in found}
        vars(module).update(found)


sys.meta_path.insert(0, _Finder())
