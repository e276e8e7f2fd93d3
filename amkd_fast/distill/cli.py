"""The command line ``amkd-distill COMMAND``; :mod:`.exit_codes` makes exit codes of what can happen."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import fields
from typing import Any, NoReturn

from amkd_fast.distill import exit_codes
from amkd_fast.distill.errors import UserError, require_extra, short
from amkd_fast.distill.evaluate_settings import EvaluateSettings
from amkd_fast.distill.export_settings import FORMATS, OPSET, ExportSettings
from amkd_fast.distill.options import add as add_settings
from amkd_fast.distill.options import given, resolve
from amkd_fast.distill.predict_settings import PredictSettings
from amkd_fast.distill.progress import EVERY
from amkd_fast.distill.settings import LARGEST, MOST, SEED, CompareSettings, TrainSettings
from amkd_fast.version import __version__

SETTINGS: dict[str, type[TrainSettings] | type[CompareSettings]] = {"train": TrainSettings, "compare": CompareSettings}
# What is done with a checkpoint.
USES: dict[str, type[EvaluateSettings | PredictSettings | ExportSettings]] = {
    "evaluate": EvaluateSettings,
    "predict": PredictSettings,
    "export": ExportSettings,
}
THREADS = 1024  # more than this many make no program faster


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code (see :mod:`.exit_codes`).

    Args:
        arguments: Words of the command line; None takes those of the process.
    """
    return exit_codes.guarded(lambda: _main(sys.argv[1:] if arguments is None else arguments))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (--[\w-]+): (.*: must )", r"\1 \2", message).removeprefix("argument ")
        raise UserError(f"{message} (see {self.prog} --help)")


def _main(arguments: list[str]) -> int:
    parser = _parser()
    if not arguments:
        parser.print_help()
        return exit_codes.OK
    options = parser.parse_args(arguments)
    require_extra()
    if options.command == "recipes":
        from amkd_fast.distill import recipes

        print(recipes.text(options.name) if options.name else recipes.overview(), end="")
        return exit_codes.OK
    if options.command == "table":
        from amkd_fast.distill import published

        print(published.table(options.name, options.folders, markdown=options.markdown), end="")
        return exit_codes.OK
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from amkd_fast.distill.broken_torchvision import put_aside
    from amkd_fast.distill.distributed import torchrun_variables

    values = vars(options)
    if torchrun_variables().WORLD_SIZE > 1 and options.command != "train":
        raise UserError(f"{options.command}: runs in one process; torchrun is for train")
    use: EvaluateSettings | PredictSettings | ExportSettings | None = None
    if options.command in USES:
        named = [field.name for field in fields(USES[options.command])]
        use = USES[options.command].from_options({name: values[name] for name in named if name in values})
    else:
        if options.overwrite and options.resume:
            raise UserError("--overwrite, --resume: give one of them")
        kind = SETTINGS[options.command]
        words = given(kind, values)
        settings: TrainSettings | CompareSettings = resolve(kind, options.config, words)

    # Only now, with the arguments known to be good: torch and lightning take seconds to import.
    import torch

    put_aside()
    if isinstance(use, ExportSettings):
        from amkd_fast.distill.export import export

        export(use)
        return exit_codes.OK
    device = _device(options.device)
    small = use is None and settings.data == "digits"
    torch.set_num_threads(options.threads or (1 if small else torch.get_num_threads()))
    progress = (sys.stderr is not None and sys.stderr.isatty()) if options.progress is None else options.progress
    quiet = use is None and options.quiet
    if quiet and (options.progress or options.log_every is not None):
        raise UserError("--quiet: goes neither with --progress nor with --log-every")
    if isinstance(use, PredictSettings):
        from amkd_fast.distill.predict import predict

        return predict(use, device=device, progress=progress)
    if use is not None:
        from amkd_fast.distill.evaluate import evaluate

        evaluate(use, device=device, progress=progress)
        return exit_codes.OK
    from amkd_fast.distill import build

    build.check(settings, device)
    stated = settings.as_dict() if options.config else words
    common: dict[str, Any] = {"output": options.output, "overwrite": options.overwrite, "resume": options.resume}
    common |= {"device": device, "progress": progress and not quiet, "quiet": quiet, "log_every": options.log_every}
    if isinstance(settings, CompareSettings):
        from amkd_fast.distill.compare import compare

        return compare(settings, stated, jobs=_jobs(options.jobs, device), **common)
    from amkd_fast.distill.train import train

    train(settings, stated, **common)
    return exit_codes.OK


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
    about = "Train small networks from large ones: KD, BSS, AMKD."
    parser = _Parser(prog="amkd-distill", description=about, epilog=exit_codes.CODES)
    parser.add_argument("--version", action="version", version=f"amkd_fast {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="train|compare|evaluate|predict|export|recipes|table"
    )

    train = commands.add_parser(
        "train", help="train one student (and its teacher), with checkpoints and resume", epilog=exit_codes.CODES
    )
    compare = commands.add_parser(
        "compare", help="train every method over several seeds; tables and plots", epilog=exit_codes.CODES
    )
    evaluate = commands.add_parser(
        "evaluate", help="accuracy of a checkpoint, clean and attacked; its boundaries", epilog=exit_codes.CODES
    )
    _add_evaluation(evaluate)
    _add_machine(evaluate)
    predict = commands.add_parser("predict", help="classes of pictures by a checkpoint", epilog=exit_codes.CODES)
    _add_prediction(predict)
    _add_machine(predict)
    export = commands.add_parser(
        "export", help="a checkpoint's network as a file for other programs", epilog=exit_codes.CODES
    )
    _add_export(export)

    _add_recipes(commands)
    for command, kind in ((train, TrainSettings), (compare, CompareSettings)):
        _add_output(command)
        _add_lines(add_settings(command, kind)["while it runs"])
        machine = _add_machine(command)
        if command is compare:
            machine.add_argument(
                "--jobs",
                type=_whole(0, THREADS),
                default=0,
                metavar="X",
                help="runs at a time; 0: as many as there is room for",
            )
    return parser


def _add_recipes(commands: Any) -> None:
    recipes = commands.add_parser(
        "recipes", help="published settings by name, for --recipe of train and compare", epilog=exit_codes.CODES
    )
    recipes.add_argument("name", nargs="?", help="show this one; default: list them all")
    table = commands.add_parser(
        "table", help="a published table of accuracies beside what was measured here", epilog=exit_codes.CODES
    )
    table.add_argument("name", choices=("cifar100",), help="cifar100: teachers and students of the 240 epochs")
    table.add_argument(
        "folders", nargs="*", metavar="FOLDER", help="results of train and compare, or folders of such (default: runs)"
    )
    table.add_argument("--markdown", action="store_true", help="print it as Markdown")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group, default = parser.add_argument_group("result"), "runs/" + parser.prog.rpartition(" ")[2]
    group.add_argument("--output", default=default, metavar="FOLDER", help=f"result folder (default: {default})")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier result once this one is complete")
    group.add_argument("--resume", action="store_true", help="go on with what is unfinished in --output")


def _add_lines(group: Any) -> None:
    group.add_argument(
        "--log-every",
        type=_number(0.0),
        metavar="SECONDS",
        help="between lines of epochs at least; the last one of a training always has a line; 0: every epoch (default: "
        f"{EVERY:g}; none where there is a bar)",
    )
    group.add_argument("--quiet", action="store_true", help="neither lines nor bars, only what comes out in the end")


def _add_machine(parser: argparse.ArgumentParser) -> Any:
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="progress bars; default: on a terminal"
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    group.add_argument(
        "--threads",
        type=_whole(0, THREADS),
        default=0,
        metavar="X",
        help="CPU threads; 0: one for digits, else torch's choice",
    )
    return group


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    from amkd_fast.distill import evaluate_settings as e

    def add(name: str, group: Any = parser, **more: Any) -> None:
        if "type" in more:
            more["metavar"] = "X"
        group.add_argument("--" + name, default=argparse.SUPPRESS, **more)

    parser.add_argument("checkpoint", help="a .ckpt of train or compare, or a state dict (.pth, .safetensors)")
    add("network", help="module:factory or timm:NAME, to allow its code where a checkpoint names it; a state dict's")
    add("mean", help="of a state dict's network, written as for train (default: the data's)")
    add("std", help="likewise")
    add("data", help="other data than it was trained with")
    add("attack", choices=e.ATTACKS, help="pgd: robust accuracy; boundary: how the presets reach it (default: none)")
    add("steps", type=_whole(1), help=f"of an attack (default: {EvaluateSettings.steps})")
    add("seed", type=_whole(0, SEED), help=f"of random starts and targets (default: {EvaluateSettings.seed})")
    add("batch-size", type=_whole(1), help=f"images attacked together (default: {EvaluateSettings.batch_size})")
    add("limit", type=_whole(0), help="test images, taken evenly over the set; 0: all (default)")
    add("output", metavar="FILE.json", help="write settings, versions and results there")
    add("overwrite", action="store_true", help="replace that file")

    pgd = parser.add_argument_group("with --attack pgd")
    add("eps", pgd, type=_number(0.0), nargs="+", help="radius or several, pixels in [0, 1] (default: 0.1)")
    add("step-size", pgd, type=_number(0.0, above=True), help="default: 2.5 eps / steps, eps in a single step")
    add("norm", pgd, choices=e.NORMS, help=f"default: {EvaluateSettings.norm}")
    add("restarts", pgd, type=_whole(1), help="runs on what the ones before left right (default: 1)")
    add("loss", pgd, choices=e.LOSSES, help=f"default: {EvaluateSettings.loss}")
    add(
        "keep",
        pgd,
        choices=e.KEEPS,
        help=f"the iterate that counts; first, best: any that fools (default: {EvaluateSettings.keep})",
    )

    boundary = parser.add_argument_group("with --attack boundary")
    add("compare", boundary, metavar="OTHER.ckpt", help="MagSim and AngSim against this network as the teacher")
    add("preset", boundary, choices=e.PRESETS, help=f"attack of --compare (default: {EvaluateSettings.preset})")
    add("targets", boundary, choices=e.TARGETS, help=f"classes of --compare (default: {EvaluateSettings.targets})")


def _add_prediction(parser: argparse.ArgumentParser) -> None:
    def add(name: str, **more: Any) -> None:
        parser.add_argument("--" + name, default=argparse.SUPPRESS, **more)

    parser.add_argument("checkpoint", help="a .ckpt of train or compare, of a student or a teacher")
    parser.add_argument("paths", nargs="+", metavar="FILE|FOLDER", help="pictures, and folders of them")
    add("network", metavar="X", help="module:factory or timm:NAME, to allow its code where a checkpoint names it")
    add("top", metavar="X", type=_whole(1), help=f"classes told of each picture (default: {PredictSettings.top})")
    add("batch-size", metavar="X", type=_whole(1), help=f"pictures at once (default: {PredictSettings.batch_size})")
    add("json", metavar="FILE", help="write the predictions there; -: print them so")
    add("csv", metavar="FILE", help="likewise as CSV")
    add("overwrite", action="store_true", help="replace these files")


def _add_export(parser: argparse.ArgumentParser) -> None:
    def add(name: str, **more: Any) -> None:
        parser.add_argument("--" + name, default=argparse.SUPPRESS, **more)

    parser.add_argument("checkpoint", help="a .ckpt of train or compare, of a student or a teacher")
    parser.add_argument("--format", choices=FORMATS, required=True, help="; ".join(FORMATS.values()))
    parser.add_argument("--output", metavar="FILE", required=True, help="where it goes")
    add("network", metavar="X", help="module:factory or timm:NAME, to allow its code where a checkpoint names it")
    add("opset", metavar="X", type=_whole(18, 23), help=f"of onnx (default: {OPSET})")
    add("overwrite", action="store_true", help="replace that file")


def _whole(least: int, most: int = MOST) -> Any:
    def rule(value: int) -> str:
        return f"at least {least}" if value < least else f"at most {most}" if value > most else ""

    return _within(int, "a whole number", rule)


def _number(least: float, *, above: bool = False) -> Any:
    def rule(value: float) -> str:
        enough = value > least if above else value >= least
        return (
            "" if enough and value <= LARGEST else f"{'above' if above else 'at least'} {least:g}, at most {LARGEST:g}"
        )

    return _within(float, "a number", rule)


def _within(kind: Any, name: str, broken: Any) -> Any:
    """A converter; ``broken`` gives the rule that a value breaks, or nothing."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
            rule = broken(value)
        except ValueError:
            rule = name
        if rule:
            raise argparse.ArgumentTypeError(f"{short(text)[1:-1]}: must be {rule}")
        return value

    return convert
