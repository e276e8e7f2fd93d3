"""``amkd-distill compare``: every method, several seeds, one teacher."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn

from amkd_fast.distill import build, exit_codes, metrics, networks, pool, report, training_runs
from amkd_fast.distill import data as datasets
from amkd_fast.distill.attack_examples import AttackExamples, attack_examples
from amkd_fast.distill.data import Data
from amkd_fast.distill.files import finite, write_atomic
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.progress import Progress
from amkd_fast.distill.report import panels, plots, samples, screen, summary, tables
from amkd_fast.distill.report.live import LivePage
from amkd_fast.distill.report.page import page
from amkd_fast.distill.report.summary import Runs
from amkd_fast.distill.result_folder import MARKER, result_folder
from amkd_fast.distill.settings import CompareSettings, Settings
from amkd_fast.distill.teacher import Teacher

REPORT = "report.html"


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
    log_every: float | None = None,
    quiet: bool = False,
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
        log_every: Seconds between lines of epochs; None: :data:`.progress.EVERY`, and none beside bars.
        quiet: No lines, neither of epochs nor of runs that are done.

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
        data = datasets.load(settings).to(device)
        training_runs.prepare(settings.names(), data, settings)
        names, seeds = settings.names(), settings.seeds
        lines = Progress(log_every, quiet=quiet, bar=progress)
        finished = pool.Finished(folder / "runs", lines)
        # Seed by seed, so that a drift of the machine's speed meets all methods alike.
        tasks = [(method, seed) for seed in range(seeds) for method in names]
        missing = [task for task in tasks if task not in finished]
        jobs = max(1, min(jobs, len(missing)))
        lines.expect(training_runs.expected(settings, data, missing, folder), jobs)
        about: dict[str, Any] = {
            "kind": "compare",
            "environment": {**report.environment(), "device": str(device)},
            "settings": settings.as_dict(),
            "jobs": jobs,
            **_subject(None, data, settings),
            "teacher_accuracy": None,
        }
        measured: dict[str, float | None] = {}  # of the teacher

        def known(runs: Runs) -> dict[str, Any]:
            return {**about, **_findings(runs, measured, data, settings), "seconds": time.perf_counter() - begun}

        def done() -> Runs:
            return {task: finished[task] for task in tasks if task in finished}

        lines.changed = LivePage(folder / REPORT, f"../{Path(output).name}/{REPORT}", lines, done, known).update
        options: dict[str, Any] = {"tell": lines.epoch, "logs": folder}
        network, accuracy = training_runs.obtain_teacher(
            settings, data, folder, progress=progress, resume=resume, **options
        )
        about |= {**_subject(network, data, settings), "teacher_accuracy": accuracy}
        measured |= metrics.measure(network, None, data, settings)
        lines.end(("teacher", training_runs.TEACHER_SEED))
        if jobs == 1:
            teacher = Teacher(network, data, settings.precision)
            pool.run_here(missing, finished, settings, data, teacher, progress=progress, **options)
        else:
            lines.bar = False  # theirs would be all over each other
            pool.run_apart(missing, finished, settings, folder / "teacher.ckpt", device, jobs, **options)
        runs = {(method, seed): finished[method, seed] for method in names for seed in range(seeds)}
        examples = attack_examples(network, data, settings)
        result = {**known(runs), "attack_gaps": examples.quartiles()}
        # From here on every number is one that the JSON can hold.
        result = finite(result)
        written = _write(folder, runs, result, examples, data)
        finished.clear()
    screen.show(result)
    print(f"{result['seconds']:.0f} s; results in {output}: {', '.join(written)}, teacher.ckpt")
    return exit_codes.DIVERGED if all(run.diverged for run in runs.values()) else exit_codes.OK


def _subject(teacher: nn.Module | None, data: Data, settings: CompareSettings) -> dict[str, Any]:
    """Data and networks, the teacher as far as it is there."""
    student = networks.build(Spec(settings.network("student"), data.channels, len(data.classes)), 0)
    described = {
        role: {"name": settings.network(role), "parameters": network and sum(p.numel() for p in network.parameters())}
        for role, network in (("teacher", teacher), ("student", student))
    }
    source = "trained here" if settings.teacher is None else f"from {settings.teacher}"
    return {
        "data": {
            "classes": list(data.classes),
            "dropped": [data.classes[label] for label in data.dropped],
            "shape": list(data.test.pixels.shape[1:]),
        },
        "images": {part: len(getattr(data, part)) for part in ("teacher", "student", "test")},
        "networks": {**described, "teacher_source": source},
    }


def _findings(runs: Runs, teacher: dict[str, float | None], data: Data, settings: Settings) -> dict[str, Any]:
    measured = {name: metrics.EVERY[name] for name in summary.measured(runs)}
    return {
        "methods": summary.summarise(runs),
        "qualities": {
            "units": {name: metric.unit for name, metric in measured.items()},
            "better": {name: metric.better for name, metric in measured.items()},
            "protocol": metrics.protocol(data, settings),
            "teacher": teacher,
        },
        "tests": summary.paired_tests(runs),
        "runs": [
            {
                "method": method,
                "seed": seed,
                "last": run.last,
                "best": run.best,
                "qualities": run.qualities,
                "diverged": run.diverged,
                "epochs": run.rows,
            }
            for (method, seed), run in runs.items()
        ],
    }


def _write(folder: Path, runs: Runs, result: dict[str, Any], examples: AttackExamples, data: Data) -> list[str]:
    """Fill the result folder; return the names of its files."""
    found, accuracy = result["methods"], result["teacher_accuracy"]
    pictures = {
        "accuracy": plots.accuracy(found, accuracy),
        "accuracy_curves": plots.accuracy_curves(runs, accuracy),
        "qualities": panels.qualities(found, result["qualities"]["teacher"]),
        "differences": panels.differences(result["tests"]) if result["tests"] else b"",
        "loss_curves": plots.loss_curves(runs),
        "gaps": plots.gaps(result["attack_gaps"]),
        "samples": samples.samples(examples, data),
    }
    pictures = {name: content for name, content in pictures.items() if content}
    contents: dict[str, bytes | str] = {
        REPORT: page(result, {**pictures, "samples": samples.halves(examples, data)}),
        "results.csv": tables.to_csv(runs),
        "summary.csv": tables.summary_csv(found),
        **{f"{name}.png": content for name, content in pictures.items()},
        MARKER: report.to_json(result),  # the last, see there
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return list(contents)
