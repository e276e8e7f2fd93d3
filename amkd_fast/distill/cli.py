"""The command line ``amkd-distill train|compare|evaluate``. Anything the user can put right: one line, exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from typing import Any, NoReturn

from amkd_fast.distill.errors import UserError, require_extra
from amkd_fast.distill.plan import Plan
from amkd_fast.distill.settings import METHODS, Settings

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code.

    Args:
        arguments: Words of the command line; None takes those of the process.
    """
    try:
        options = _parser().parse_args(arguments)
        require_extra()
        _run(options)
        sys.stdout.flush()
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:
        _abandon_stdout()
        return BAD_INPUT
    except OSError as error:
        _abandon_stdout()
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("amkd-distill: interrupted (train goes on with --resume)", file=sys.stderr)
        return INTERRUPTED
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _complain(message: str) -> int:
    print("amkd-distill: " + " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT


def _abandon_stdout() -> None:
    """What cannot be written now cannot be written at exit either; spare the user the second complaint."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(options: argparse.Namespace) -> None:
    values = vars(options)
    if options.command == "evaluate":
        plan = Plan.from_options({field.name: values[field.name] for field in fields(Plan) if field.name in values})

    # Only now, with the arguments known to be good: torch and lightning take seconds to import.
    import torch

    from amkd_fast.distill import methods

    given = {field.name: values[field.name] for field in fields(Settings) if field.name in values}
    settings = Settings(**given)
    device = _device(options.device)
    torch.set_num_threads(_threads(options.threads, settings))
    progress = sys.stderr.isatty() if options.progress is None else options.progress
    if options.command == "evaluate":
        from amkd_fast.distill.evaluate import evaluate

        evaluate(plan, device=device, progress=progress)
        return
    methods.check(settings)
    common = {
        "output": options.output,
        "teacher_path": options.teacher,
        "overwrite": options.overwrite,
        "device": device,
        "progress": progress,
    }
    if options.command == "compare":
        from amkd_fast.distill.compare import compare

        compare(settings, names=options.methods, seeds=options.seeds, jobs=_jobs(options.jobs, device), **common)
    else:
        from amkd_fast.distill.train import train

        given.update({name: values[name] for name in ("method", "seed") if name in values})
        named = {"method": values.get("method", "amkd"), "seed": values.get("seed", 0)}
        train(settings, given, resume=options.resume, **named, **common)


def _device(name: str) -> Any:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def _jobs(count: int, device: Any) -> int:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count or (1 if device.type == "cuda" else max(1, cores // torch.get_num_threads()))


def _threads(count: int, settings: Settings) -> int:
    """Networks on 8 x 8 pictures are too small to share: more threads make them slower."""
    import torch

    return count or (1 if settings.data == "digits" else torch.get_num_threads())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="amkd-distill", description="Train small networks from large ones: KD, BSS, AMKD.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="train|compare|evaluate")

    train = commands.add_parser("train", help="train one student (and its teacher), with checkpoints and resume")
    train.add_argument("--method", choices=METHODS, default=argparse.SUPPRESS, help="default: amkd")
    train.add_argument("--seed", type=_whole(0), default=argparse.SUPPRESS, help="default: 0")
    train.add_argument("--resume", action="store_true", help="go on with the unfinished run of --output")
    _add_output(train, "runs/train")

    compare = commands.add_parser("compare", help="train every method over several seeds; tables and plots")
    compare.add_argument(
        "--methods", type=_methods, default=list(METHODS), help=f"comma-separated, of {', '.join(METHODS)}"
    )
    compare.add_argument("--seeds", type=_whole(1), default=3, help="number of seeds (default: 3)")
    compare.add_argument("--jobs", type=_whole(0), default=0, help="runs at a time; 0: as many as the CPU has room for")
    _add_output(compare, "runs/compare")

    evaluate = commands.add_parser("evaluate", help="accuracy of a checkpoint, clean and attacked; its boundaries")
    _add_evaluation(evaluate)
    _add_machine(evaluate)

    for command in (train, compare):
        _add_settings(command)
        _add_machine(command)
    return parser


def _add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--output", default=default, help=f"result folder (default: {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result once this one is complete")
    parser.add_argument("--teacher", help="checkpoint of a teacher; default: train one")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="progress bars; default: on a terminal"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--threads", type=_whole(0), default=0, help="CPU threads; 0: one for digits, else torch's choice"
    )


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    from amkd_fast.distill import plan as p
    from amkd_fast.distill import settings as s

    def add(name: str, group: Any = parser, **more: Any) -> None:
        group.add_argument("--" + name, default=argparse.SUPPRESS, **more)

    parser.add_argument("checkpoint", help="a .ckpt of train or compare")
    add("data", help="other data than it was trained with")
    add("attack", choices=p.ATTACKS, help="pgd: robust accuracy; boundary: how the presets reach it (default: none)")
    add("steps", type=_whole(1), help=f"of an attack (default: {Plan.steps})")
    add("seed", type=_whole(0), help=f"of random starts and targets (default: {Plan.seed})")
    add("batch-size", type=_whole(1), help=f"images attacked together (default: {Plan.batch_size})")
    add("limit", type=_whole(0), help="test images, taken evenly over the set; 0: all (default)")
    add("output", metavar="FILE.json", help="write settings, versions and results there")
    add("overwrite", action="store_true", help="replace that file")

    pgd = parser.add_argument_group("with --attack pgd")
    add("eps", pgd, type=_number(0.0), nargs="+", help="radius or several, pixels in [0, 1] (default: 0.1)")
    add("step-size", pgd, type=_number(0.0, above=True), help="default: 2.5 eps / steps, eps in a single step")
    add("norm", pgd, choices=p.NORMS, help=f"default: {Plan.norm}")
    add("restarts", pgd, type=_whole(1), help="runs on what the ones before left right (default: 1)")
    add("loss", pgd, choices=p.LOSSES, help=f"default: {Plan.loss}")
    add(
        "keep",
        pgd,
        choices=p.KEEPS,
        help=f"the iterate that counts; first, best: any that fools (default: {Plan.keep})",
    )

    boundary = parser.add_argument_group("with --attack boundary")
    add("compare", boundary, metavar="OTHER.ckpt", help="MagSim and AngSim against this network as the teacher")
    add("preset", boundary, choices=s.PRESETS, help=f"attack of --compare (default: {Plan.preset})")
    add("targets", boundary, choices=p.TARGETS, help=f"classes of --compare (default: {Plan.targets})")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from amkd_fast.distill import settings as s

    defaults = Settings()
    group = parser.add_argument_group("data, sizes and loss scales (the defaults are a pilot's on digits)")

    def add(name: str, convert: Any = None, **more: Any) -> None:
        value = getattr(defaults, name)
        if "help" in more or value is not None:
            more["help"] = more.get("help", "") + (f" (default: {value})" if value is not None else "")
        if convert is not None:
            more["type"] = convert
        group.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, **more)

    add("data", help="digits, or a folder with train/<class>/*.png|jpg and test/<class>/")
    add("image_size", _whole(8), help="side to which a folder's pictures are brought")
    group.add_argument("--grayscale", action="store_true", default=argparse.SUPPRESS, help="read a folder in grey")
    add("data_seed", _whole(0), help="which digits go where")
    add("teacher_images", _whole(0), help="0: all; default: 1000 of digits, all of a folder")
    add("student_images", _whole(0), help="0: all the teacher's; default: 200 of digits, all of a folder")
    add("augment", choices=s.AUGMENTS, help="auto: none for digits, crop+flip for a folder")
    for network in ("teacher", "student"):
        add(f"{network}_width", _whole(1), help="channels of the first stage")
        add(f"{network}_blocks", _whole(1), help="blocks in each of three stages")
    add("teacher_epochs", _whole(1))
    add("epochs", _whole(1), help="of the student")
    add("batch_size", _whole(2))
    add("lr", _number(0.0, above=True))
    add("momentum", _number(0.0))
    add("weight_decay", _number(0.0))
    add("temperature", _number(0.0, above=True))
    add("kl_weight_start", _number(0.0), help="weight of the clean KL, falls linearly")
    add("kl_weight_end", _number(0.0))
    group.add_argument("--kl-t2", action="store_true", default=argparse.SUPPRESS, help="multiply the clean KL by T²")
    add("boundary_weight", _number(0.0), help="β of the first epoch")
    add("boundary_until", _number(0.0, above=True), help="share of the epochs after which β is 0")
    group.add_argument(
        "--boundary-t2",
        action="store_true",
        default=argparse.SUPPRESS,
        help="multiply the boundary KL by T² (destroyed the pilot)",
    )
    add("boundary_samples", _whole(1), help="most attacked images in a batch")
    add("attack_steps", _whole(1))
    add("bounds", choices=s.BOUNDS, help="of attacked pixels: the pixels' own range, or the preset's")
    add("bn", choices=s.BN_POLICIES, help="BatchNorm of attacked batches")
    add("amkd_preset", choices=s.PRESETS, help="attack of amkd")
    add("triplet_weight", _number(0.0), help="γ")
    add("margin", _number(0.0))
    add("variant", choices=s.VARIANTS)
    add("negatives", choices=s.NEGATIVES)
    add("selector", choices=s.SELECTORS)
    add("space", choices=s.SPACES)
    group.add_argument(
        "--force", action="store_true", default=argparse.SUPPRESS, help="allow --negatives target anyway"
    )


def _methods(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: name each method once")
    return names


def _whole(least: int) -> Any:
    def convert(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
        return value

    convert.__name__ = "whole number"
    return convert


def _number(least: float, *, above: bool = False) -> Any:
    def convert(text: str) -> float:
        value = float(text)
        if not (value > least if above else value >= least) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: must be {'above' if above else 'at least'} {least:g} and finite")
        return value

    convert.__name__ = "number"
    return convert
