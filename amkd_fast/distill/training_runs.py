"""The training runs: the teacher's, and those of its students by method and seed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amkd_fast.distill import build, networks, normalisation, teacher_check, teacher_file
from amkd_fast.distill.checkpoint import save_network
from amkd_fast.distill.data import Data
from amkd_fast.distill.distributed import World
from amkd_fast.distill.errors import Diverged, UserError, allocating
from amkd_fast.distill.fit import ALONE, Run, fit
from amkd_fast.distill.forecast import Expected, Task
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalised, normalisation_of
from amkd_fast.distill.settings import CompareSettings, RunSettings, Settings
from amkd_fast.distill.state_dict_file import Claim
from amkd_fast.distill.teacher import Teacher, predict, rightly
from amkd_fast.distill.teacher_file import TeacherFile
from amkd_fast.methods import Method
from amkd_fast.methods.outputs import with_features

TEACHER_SEED = 0


def train_teacher(data: Data, settings: Settings, **options: Any) -> tuple[Run, Spec]:
    """Train the teacher with the labels alone; the options are those of :func:`fit`."""
    network, spec = _built("teacher", TEACHER_SEED, data, settings)
    spread = options.get("world", ALONE).size > 1
    method = build.method("student", settings, data, distributed=spread, labels=data.teacher.labels)
    settings = settings.of_teacher()
    options = {"epochs": settings.epochs, "seed": TEACHER_SEED, "about": {}, "name": "teacher", **options}
    return fit(network, spec, method, None, data.teacher, data, settings, **options), spec


def obtain_teacher(
    settings: RunSettings,
    data: Data,
    folder: Path,
    *,
    resume: bool = False,
    world: World = ALONE,
    **options: Any,
) -> tuple[Normalised, float]:
    """The teacher that the settings name, or one that is trained here; kept as teacher.ckpt. And its accuracy.

    Args:
        settings: ``teacher`` is the path of a checkpoint, or None.
        data: What it is trained and tested on.
        folder: Where teacher.ckpt goes, and while it is trained a folder of its checkpoints.
        resume: Take the teacher.ckpt of ``folder``, or go on with the training that was interrupted there.
        world: The processes that train together.
        options: Of :func:`fit`, for its training.
    """
    kept, growing = folder / "teacher.ckpt", folder / "teacher"
    path = kept if resume and kept.is_file() else settings.teacher
    claim = None
    if path is not None:
        network, spec, source, claim = _read_teacher(path, data, settings)
        how = f"teacher from {source}"
    else:
        _tell_of_foreign(settings, world)
        start = time.perf_counter()
        try:
            run, spec = train_teacher(data, settings, folder=growing, resume=resume, world=world, **options)
        except Diverged as error:
            raise told("teacher", error, growing, settings.teacher_epochs) from error
        assert isinstance(run.network, Normalised), "fit returns it"
        network, how = run.network, f"teacher trained in {time.perf_counter() - start:.0f} s"
    logits = predict(network, data.test)
    correct = 100.0 * float(rightly(logits, data.test.labels).float().mean())
    if not bool(logits.isfinite().all()):
        how += " (its logits are not finite)"
        claim = None  # it has diverged, as the training will say
    if world.first:
        print(
            f"{how}: {correct:.1f} % on {len(data.test)} test images, normalised by {network.normalisation}", flush=True
        )
        teacher_check.warn_of_chance(correct, len(data.test), len(data.classes))
    if settings.expect_teacher is not None:
        claim = Claim(settings.expect_teacher, "--expect-teacher")
    if claim is not None:
        teacher_check.check(network, data.test, logits, claim, f"--teacher {path}")
    if world.first:
        if path != kept:
            about = describe("teacher", TEACHER_SEED, data, settings)
            save_network(kept, network, spec, {**about, "accuracy": correct})
        shutil.rmtree(growing, ignore_errors=True)
    return network, correct


def load_teacher(path: str | Path, data: Data, settings: Settings) -> tuple[Normalised, Spec]:
    """A teacher from a file, checked against the data."""
    return _read_teacher(path, data, settings)[:2]


def _read_teacher(path: str | Path, data: Data, settings: Settings) -> TeacherFile:
    found = teacher_file.load(path, data, settings)
    network = found.network.to(data.test.labels.device)
    rehearse(network, f"--teacher {path}", found.spec, data)
    return found._replace(network=network)


def _tell_of_foreign(settings: Settings, world: World) -> None:
    """What somebody who names a published network may not expect: that it is trained here."""
    name = settings.network("teacher")
    if not networks.is_users(name) or not world.first:
        return
    if name != networks.untrained(name):
        begin = "its pretrained weights, with a new head where the classes are others"
    elif name.startswith("timm:"):
        begin = f"random weights ({name}@pretrained has pretrained ones)"
    else:
        begin = "the weights that it is built with"
    print(
        f"teacher {name}: is trained here, {settings.teacher_epochs} epochs from {begin}; --teacher FILE takes it "
        "as it is in a file",
        flush=True,
    )


def expected(settings: RunSettings, data: Data, students: Iterable[Task], folder: Path) -> dict[Task, Expected]:
    """The trainings that a command consists of: those of these students, and the teacher's where there is none yet."""
    found = {task: Expected(settings.epochs, len(data.student)) for task in students}
    asked = isinstance(settings, CompareSettings) or any(method != "student" for method, _ in found)
    if asked and settings.teacher is None and not (folder / "teacher.ckpt").is_file():
        found = {("teacher", TEACHER_SEED): Expected(settings.teacher_epochs, len(data.teacher)), **found}
    return found


def prepare(names: Iterable[str], data: Data, settings: RunSettings, distributed: bool = False) -> None:
    """Build once what the trainings will build, so that what cannot be built is known before hours of training.

    Raises:
        UserError: A network or a method cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        teacher = None
        if settings.teacher is None and any(name != "student" for name in names):
            teacher = _built("teacher", TEACHER_SEED, data, settings)[0].eval()
        student = _built("student", 0, data, settings)[0]
        width = _width(student, data, settings)
        for name in names:
            method = build.method(name, settings, data, width, distributed=distributed)
            if teacher is not None:
                _prepare(name, method, data, teacher, student)


def rehearse(network: nn.Module, what: str, spec: Spec, data: Data) -> None:
    """Find out before the work whether a network of the user's own takes these images, and answers with logits.

    Raises:
        UserError: It does not; the message begins with ``what``.
    """
    if not networks.is_users(spec.name):
        return
    images = data.test.take(slice(0, 1)).images
    was_training = network.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = network.eval()(images.to(next(network.parameters()).dtype))
    except Exception as error:
        shape, reason = " × ".join(map(str, images.shape[1:])), " ".join(str(error).split())[:120]
        raise UserError(
            f"{what}: does not take images of {shape} ({type(error).__name__}: {reason}); --image-size brings those "
            "of a folder to another size"
        ) from error
    network.train(was_training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, len(data.classes)):
        answer = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{what}: answers an image with {answer}: must be logits of shape (1, {len(data.classes)})")


def told(name: str, error: Diverged, folder: Path, epochs: int) -> Diverged:
    """The same, with the name of what was trained and the checkpoint that is left."""
    good = folder / "last.ckpt"
    kept = f"{good} is of epoch {error.epoch - 1}, the last good one" if good.is_file() else "no epoch was good"
    message = f"{name} diverged in epoch {error.epoch} of {epochs} ({error.what}); {kept}"
    return Diverged(error.epoch, error.what, error.rows, message)


def train_student(name: str, seed: int, teacher: Teacher | None, data: Data, settings: Settings, **options: Any) -> Run:
    """Train the student of a seed: the same initial weights and batches for every method."""
    network, spec = _built("student", 1000 + seed, data, settings)
    spread = options.get("world", ALONE).size > 1
    shape = {"distributed": spread, "fixed_shape": settings.whole_step}
    learnt = None if teacher is None else normalisation_of(teacher.network)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2000 + seed)  # of the method's own weights
        method = build.method(name, settings, data, _width(network, data, settings), normalisation=learnt, **shape)
        method.to(data.test.labels.device)
        _prepare(name, method, data, None if teacher is None else teacher.network, network)
    options = {"epochs": settings.epochs, "seed": seed, "about": {}, "name": name, **options}
    return fit(network, spec, method, teacher, data.student, data, settings, **options)


def _prepare(name: str, method: Method, data: Data, teacher: nn.Module | None, student: nn.Module) -> None:
    """Have a method make its own weights.

    Raises:
        UserError: They cannot be made between these networks, or there is no room for them.
    """
    try:
        with allocating(f"--method {name}"):
            method.prepare(data.student.take(slice(0, 1)).images, teacher, student)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def describe(method: str, seed: int, data: Data, settings: Settings) -> dict[str, Any]:
    """What a checkpoint must know to be evaluated later, beside its network's mean and std: plain values only."""
    return {
        "method": method,
        "seed": seed,
        "classes": list(data.classes),
        "settings": settings.as_dict(),
    }


def _built(role: str, seed: int, data: Data, settings: Settings) -> tuple[Normalised, Spec]:
    spec = Spec(settings.network(role), data.channels, len(data.classes))
    what = f"--{role}-network {spec.name}"
    with allocating(what):
        network = Normalised(networks.build(spec, seed), *normalisation.of_student(settings, data))
        network.to(data.test.labels.device)
    rehearse(network, what, spec, data)
    return network, spec._replace(name=networks.untrained(spec.name))


@torch.no_grad()
def _width(network: nn.Module, data: Data, settings: Settings) -> int | None:
    """D of the features, where a memory has to be as wide."""
    if not (settings.memory and settings.space == "features"):
        return None
    network.eval()
    width = with_features(network, data.test.take(torch.arange(1, device=data.test.labels.device)).images)[1].shape[1]
    network.train()
    return width
