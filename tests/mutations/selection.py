"""Which tests answer for a family, among those that make runs in CI: what is not run there catches nothing."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.emulator.__main__ import environment as emulating

CONTRACT = "tests/test_contract.py"  # operations of all families by a table, where there is one
LEVELS = ("tests/test_build.py",)  # some of its tests start a process for each SIMD level
_PYTEST = re.compile(r"(.*) -m (pytest|tests\.levels|tests\.emulator test)(?: (.*))?$")
STAGES = ("kernel", "family", "levels", "neighbours", "users")


class Family(NamedTuple):
    """Test files by what follows `test_` in their names, and words that the names of table-driven tests hold."""

    files: tuple[str, ...]
    words: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()  # families that run the same code
    users: tuple[str, ...] = ()  # files of what is built on it


_LOSSES = ("losses", "methods", "training")
_ATTACKS = ("attacks", "capture", "similarity", "robustness", "methods", "parity", "training")
FAMILIES = {
    "kl": Family(
        ("kl", "row_loss"), ("kl", "distillation", "soft_cross"), ("decoupled", "consistency", "standardised"), _LOSSES
    ),
    "decoupled": Family(("decoupled",), ("decoupled", "dkd"), (), _LOSSES),
    "consistency": Family(("consistency",), ("consistency",), ("standardised",), _LOSSES),
    "standardised": Family(("standardised",), ("standardised",), (), _LOSSES),
    "triplet": Family(
        ("triplet_corners", "triplet", "triplet_kernels"), ("triplet", "nearest", "mine"), ("triplet_ranks",),
        ("memory", "metric_learning", "losses", "losses_ranks"),
    ),
    "triplet_ranks": Family(("triplet_ranks", "losses_ranks")),
    "attack": Family(
        ("attack_corners", "attack", "attack_kernels"), ("attack", "objective", "bases", "draw"), ("particles",),
        _ATTACKS,
    ),
    "particles": Family(("attack_corners", "particles"), ("svgd", "particle"), (), _ATTACKS),
    "images": Family(("images",), ("crop", "image"), (), ("data", "training")),
    "augment": Family(("augment",), ("augment",), (), ("data", "training")),
    "segments": Family(("segments",), ("segment",), (), _LOSSES),
    "relations": Family(("relations",), ("relation", "rkd"), (), _LOSSES),
    "attacks": Family(("attack_corners", *_ATTACKS[:-3]), (), ("particles",), _ATTACKS[-3:]),
    "losses": Family(("losses", "losses_ranks"), (), (), ("methods", "training")),
    "memory": Family(("memory",), (), (), ("losses", "metric_learning")),
    # What all families share: the shortest files come first.
    "threads": Family(
        ("segments", "relations", "consistency", "standardised", "decoupled", "kl"), ("threads",),
        ("augment", "particles", "attack", "triplet"), _LOSSES,
    ),
    "dtypes": Family(
        ("segments", "consistency", "standardised", "decoupled", "kl"), ("bfloat16",),
        ("particles", "attack", "images"), _LOSSES,
    ),
}  # fmt: skip


class Run(NamedTuple):
    """One pytest of the targets of make."""

    files: tuple[str, ...]
    expression: str  # of -k
    options: tuple[str, ...]
    interpreted: bool  # by Triton's interpreter
    by_level: bool  # once for each SIMD level
    emulated: str = ""  # the emulator's build


class Stage(NamedTuple):
    """One pytest of ours."""

    name: str
    files: tuple[str, ...]
    expression: str
    options: tuple[str, ...]
    interpreted: bool = False
    level: str = ""  # the CPU's best
    emulated: str = ""

    def arguments(self) -> list[str]:
        return [*self.files, *self.options, *(("-k", self.expression) if self.expression else ())]

    def environment(self) -> dict[str, str]:
        found = emulating(self.emulated) if self.emulated else {}
        found |= {"TRITON_INTERPRET": "1"} if self.interpreted else {}
        return found | ({"AMKD_FAST_SIMD": self.level} if self.level else {})


def runs_of(tree: Path, targets: list[str]) -> list[Run]:
    """What make runs in a tree, whether or not it would build something first."""
    command = ["make", "-n", "-s", "-C", str(tree), *targets, f"PYTHON={sys.executable}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ").splitlines()
    found = [_run(tree, *match.groups("")) for line in lines if (match := _PYTEST.match(line))]
    if not found:
        raise SystemExit(f"`make -n {' '.join(targets)}` names no pytest: there is nothing to judge")
    return found


def _run(tree: Path, before: str, module: str, after: str) -> Run:
    words, files, options, expression = shlex.split(after), [], [], ""
    by_level, emulated = module == "tests.levels", "1" if module.startswith("tests.emulator") else ""
    if by_level and not words:
        words = ["--backend", "cpu", "tests"]
    if emulated:
        words = ["--backend", "cuda", *words]
    while words:
        word = words.pop(0)
        if word == "-k":
            expression = words.pop(0)
        elif word in ("-n", "--numprocesses", "--dist"):
            words.pop(0)  # one process, whose test can be named when it hangs
        elif word in ("-x", "-q", "-v"):
            pass  # ours
        elif emulated and word in ("--race", "--asan"):
            emulated = word[2:]
        elif word.startswith("-"):
            options.append(word)
            if word in ("--backend", "-m", "-p", "-o", "--ignore"):
                options.append(words.pop(0))
        elif (tree / word).is_dir():
            files += sorted(str(path.relative_to(tree)) for path in (tree / word).glob("test_*.py"))
        else:
            files.append(word)
    return Run(tuple(files), expression, tuple(options), "TRITON_INTERPRET=1" in before, by_level, emulated)


def stages_of(tree: Path, runs: list[Run], family: str, kind: str) -> list[Stage]:
    """The tests for a mutant, in the order that finds it soonest: its family's, its neighbours', the users'.

    What is compiled meets those of the CPU backend first, which are among the family's.
    """
    its = FAMILIES[family]
    own = _paths(its.files)
    near = [path for name in its.neighbours for path in _paths(FAMILIES[name].files)]
    users = _paths(its.users)
    levels = [path for path in LEVELS if (tree / path).is_file()]
    words = " or ".join(its.words)
    stages = []
    for run in runs:
        if (run.interpreted, bool(run.emulated)) != (kind == "triton", kind == "cuda"):
            continue
        if run.by_level and kind != "cpu":
            continue
        groups = [("family", own, ""), ("neighbours", near, ""), ("users", users, "")]
        if run.by_level:
            groups = [("levels", own, "")]
        elif kind == "cpu":
            groups.insert(1, ("levels", levels, "simd"))
        found, seen = [], set()
        contract = ()
        if CONTRACT in run.files and words:
            both = f"({run.expression}) and ({words})" if run.expression else words
            contract = (Stage(groups[0][0], (CONTRACT,), both, run.options, run.interpreted),)
        if kind == "cpu" and not run.by_level:
            files, cpu = tuple(path for path in own if path in run.files), (*run.options, "--backend", "cpu")
            found += [stage._replace(name="kernel", options=cpu) for stage in contract]
            found += [Stage("kernel", files, run.expression, cpu)] if files else []
        found += contract
        for name, wanted, expression in groups:
            files = tuple(path for path in dict.fromkeys(wanted) if path in run.files and path not in seen)
            seen.update(files)
            if files:
                found.append(Stage(name, files, run.expression or expression, run.options, run.interpreted))
        of_levels = ("baseline", "avx2") if run.by_level else ("",)  # the best one has its turn without being asked
        stages += [stage._replace(level=level, emulated=run.emulated) for level in of_levels for stage in found]
    return sorted(stages, key=lambda stage: STAGES.index(stage.name))


def _paths(names: tuple[str, ...]) -> list[str]:
    return [f"tests/test_{name}.py" for name in names]
