"""The command line ``amkd-distill train|compare|evaluate``. Anything the user can put right: one line, exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from typing import Any, NoReturn

from amkd_fast.distill.errors import UserError, require_extra
from amkd_fast.distill.options import add as add_settings
from amkd_fast.distill.options import given, resolve
from amkd_fast.distill.plan import Plan
from amkd_fast.distill.settings import CompareSettings, TrainSettings

SETTINGS = {"train": TrainSettings, "compare": CompareSettings}
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
        print("amkd-distill: interrupted (--resume goes on)", file=sys.stderr)
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
    if options.command != "train" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{options.command}: runs in one process; torchrun is for train")
    if options.command == "evaluate":
        plan = Plan.from_options({field.name: values[field.name] for field in fields(Plan) if field.name in values})
    else:
        kind = SETTINGS[options.command]
        words = given(kind, values)
        settings = resolve(kind, options.config, words)

    # Only now, with the arguments known to be good: torch and lightning take seconds to import.
    import torch

    device = _device(options.device)
    small = options.command != "evaluate" and settings.data == "digits"
    torch.set_num_threads(options.threads or (1 if small else torch.get_num_threads()))
    progress = sys.stderr.isatty() if options.progress is None else options.progress
    if options.command == "evaluate":
        from amkd_fast.distill.evaluate import evaluate

        evaluate(plan, device=device, progress=progress)
        return
    from amkd_fast.distill import choice

    choice.check(settings, device)
    stated = settings.as_dict() if options.config else words
    common = {"output": options.output, "overwrite": options.overwrite, "resume": options.resume}
    common |= {"device": device, "progress": progress}
    if options.command == "compare":
        from amkd_fast.distill.compare import compare

        compare(settings, stated, jobs=_jobs(options.jobs, device), **common)
    else:
        from amkd_fast.distill.train import train

        train(settings, stated, **common)


def _device(name: str) -> Any:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def _jobs(count: int, device: Any) -> int:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count or (1 if device.type == "cuda" else max(1, cores // torch.get_num_threads()))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="amkd-distill", description="Train small networks from large ones: KD, BSS, AMKD.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="train|compare|evaluate")

    train = commands.add_parser("train", help="train one student (and its teacher), with checkpoints and resume")
    _add_output(train, "runs/train")

    compare = commands.add_parser("compare", help="train every method over several seeds; tables and plots")
    compare.add_argument("--jobs", type=_whole(0), default=0, help="runs at a time; 0: as many as the CPU has room for")
    _add_output(compare, "runs/compare")

    evaluate = commands.add_parser("evaluate", help="accuracy of a checkpoint, clean and attacked; its boundaries")
    _add_evaluation(evaluate)
    _add_machine(evaluate)

    for command, kind in ((train, TrainSettings), (compare, CompareSettings)):
        _add_machine(command)
        add_settings(command, kind)
    return parser


def _add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--output", default=default, help=f"result folder (default: {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result once this one is complete")
    parser.add_argument("--resume", action="store_true", help="go on with what is unfinished in --output")


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
    add("network", help="module:factory or timm:NAME, to allow its code where a checkpoint names it")
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
