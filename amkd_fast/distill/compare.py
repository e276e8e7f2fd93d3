"""``amkd-distill compare``: every method, several seeds, one teacher."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn

from amkd_fast.distill import (
    build,
    exit_codes,
    kept_students,
    metrics,
    networks,
    normalisation,
    pool,
    report,
    training_runs,
)
from amkd_fast.distill import data as datasets
from amkd_fast.distill.attack_examples import AttackExamples, attack_examples
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.data import Data
from amkd_fast.distill.files import finite, write_atomic
from amkd_fast.distill.fit import best_epoch
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.report import panels, plots, samples, screen, summary, tables
from amkd_fast.distill.report.card import NAME as CARD
from amkd_fast.distill.report.card import card
from amkd_fast.distill.report.experiment import experiment
from amkd_fast.distill.report.page import page
from amkd_fast.distill.report.summary import Runs
from amkd_fast.distill.result_folder import MARKER, result_folder
from amkd_fast.distill.settings import CompareSettings, Settings
from amkd_fast.distill.teacher import Teacher


def compare(
    settings: CompareSettings,
    given: dict[str, Any],
    *,
    output: str,
    jobs: int,
    overwrite: bool,
    resume: bool,
    device: Any,
    progress: bool,
) -> int:
    """Train all methods from the same teacher and initial students; print and write what came out.

    Args:
        settings: Of a fresh comparison.
        given: The settings that the user stated; a resumed comparison must not contradict them.
        output: Result folder.
        jobs: Runs at a time, each in a process of its own; 1: one after the other, here.
        overwrite: Replace an earlier result once this one is complete.
        resume: Go on with the unfinished comparison of ``output``: runs that are done are not run again.
        device: Where to train.
        progress: Show progress bars.

    Returns:
        The exit code: 3 where every run diverged.

    Raises:
        Diverged: The teacher's training did.
        UserError: Something only the user can put right.
    """
    begun = time.perf_counter()
    flags = {"overwrite": overwrite, "resume": resume}
    with result_folder(output, "compare", settings, given, **flags) as (folder, settings):
        if folder is None:
            print(f"{output} is complete: there is nothing left to do")
            return exit_codes.OK
        build.check(settings, device)
        data = datasets.load(settings, device).to(device)
        training_runs.prepare(settings.names(), data, settings)
        network, accuracy = training_runs.obtain_teacher(settings, data, folder, progress=progress, resume=resume)
        names, seeds = settings.names(), settings.seeds
        finished = pool.Finished(folder / "runs")
        students = folder / kept_students.FOLDER if settings.keep_students else None
        # Seed by seed, so that a drift of the machine's speed meets all methods alike.
        tasks = [(method, seed) for seed in range(seeds) for method in names]
        missing = [task for task in tasks if task not in finished]
        if min(jobs, len(missing)) <= 1:
            known = Teacher(network, data, settings.precision)
            pool.run_here(missing, finished, settings, data, known, students, progress)
        else:
            jobs = min(jobs, len(missing))
            pool.run_apart(missing, finished, settings, folder / "teacher.ckpt", students, device, jobs)
        runs = {(method, seed): finished[method, seed] for method in names for seed in range(seeds)}
        examples = attack_examples(network, data, settings)
        result = {
            "kind": "compare",
            "environment": {**report.environment(), "device": str(device)},
            "settings": settings.as_dict(),
            "jobs": jobs,
            **experiment({"teacher": network, "student": _student(data, settings)}, data, settings),
            "teacher_accuracy": accuracy,
            **_findings(runs, network, data, settings),
            "attack_gaps": examples.quartiles(),
            "seconds": time.perf_counter() - begun,
        }
        # From here on every number is one that the JSON can hold.
        result = finite(result)
        written = _write(folder, runs, result, examples, data)
        if students is not None:
            _write_cards(students, runs, result, data, settings)
        write_atomic(folder / MARKER, report.to_json(result))  # the last, see there
        finished.clear()
    screen.show(result)
    kept = "" if students is None else f", {kept_students.FOLDER}/"
    print(f"{result['seconds']:.0f} s; results in {output}: {', '.join(written)}, {MARKER}, teacher.ckpt{kept}")
    return exit_codes.DIVERGED if all(run.diverged for run in runs.values()) else exit_codes.OK


def _student(data: Data, settings: CompareSettings) -> Normalised:
    """A student as it begins, for what does not depend on its weights."""
    spec = Spec(settings.network("student"), data.channels, len(data.classes))
    network = Normalised(networks.build(spec, 0), *normalisation.of_student(settings, data))
    return network.to(data.test.labels.device)


def _findings(runs: Runs, teacher: nn.Module, data: Data, settings: Settings) -> dict[str, Any]:
    measured = {name: metrics.EVERY[name] for name in summary.measured(runs)}
    return {
        "methods": summary.summarise(runs),
        "qualities": {
            "units": {name: metric.unit for name, metric in measured.items()},
            "better": {name: metric.better for name, metric in measured.items()},
            "protocol": metrics.protocol(data, settings),
            "teacher": metrics.measure(teacher, None, data, settings),
        },
        "tests": summary.paired_tests(runs),
        "runs": [
            {
                "method": method,
                "seed": seed,
                "last": run.last,
                "best": run.best,
                "qualities": run.qualities,
                "classes": run.classes,
                "diverged": run.diverged,
                "epochs": run.rows,
            }
            for (method, seed), run in runs.items()
        ],
    }


def _write(folder: Path, runs: Runs, result: dict[str, Any], examples: AttackExamples, data: Data) -> list[str]:
    """Fill the result folder, all but its results.json; return the names of its files."""
    found, accuracy = result["methods"], result["teacher_accuracy"]
    pictures = {
        "accuracy": plots.accuracy(found, accuracy),
        "qualities": panels.qualities(found, result["qualities"]["teacher"]),
        "differences": panels.differences(result["tests"]) if result["tests"] else b"",
        "loss_curves": plots.loss_curves(runs),
        "gaps": plots.gaps(result["attack_gaps"]),
        "samples": samples.samples(examples, data),
    }
    pictures = {name: content for name, content in pictures.items() if content}
    contents: dict[str, bytes | str] = {
        "report.html": page(result, pictures),
        "results.csv": tables.to_csv(runs),
        "summary.csv": tables.summary_csv(found),
        **{f"{name}.png": content for name, content in pictures.items()},
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return list(contents)


def _write_cards(students: Path, runs: Runs, result: dict[str, Any], data: Data, settings: CompareSettings) -> None:
    """A model card beside the best student of each method, among the seeds."""
    for method in result["methods"]:
        kept = {
            seed: run
            for (name, seed), run in runs.items()
            # A run of an earlier version, or one that diverged, has left no student.
            if name == method and (kept_students.folder_of(students, name, seed) / "best.ckpt").is_file()
        }
        if not kept:
            continue
        seed = max(kept, key=lambda seed: kept[seed].best or 0.0)
        folder, run = kept_students.folder_of(students, method, seed), kept[seed]
        last = best = run.qualities or {}
        if best_epoch(run.rows) is not run.rows[-1]:
            student, _, _ = load_network(folder / "best.ckpt", settings.network("student"), "--student-network")
            best = metrics.measure(student.to(data.test.labels.device), None, data, settings)
        measured = {"best.ckpt": best, "last.ckpt": last, "teacher": result["qualities"]["teacher"]}
        write_atomic(folder / CARD, card(method, seed, measured, result, settings))
