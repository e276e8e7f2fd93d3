"""The model card of a student: Markdown that says how to load it, what it reaches, costs and was made with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from amkd_fast.distill import networks
from amkd_fast.distill.metrics import EVERY, OF_DROPPED_LABELS, OF_THE_TEACHER
from amkd_fast.distill.settings import RunSettings, default_of

NAME = "card.md"
MOST_CLASSES = 20  # that are listed
QUALITIES = (*OF_THE_TEACHER, *OF_DROPPED_LABELS)  # what a network is worth by itself
_TOLD = ("method", "seed", "data", "teacher", "teacher_network", "student_network")  # elsewhere


def card(
    method: str,
    seed: int,
    measured: dict[str, dict[str, float | None]],
    result: dict[str, Any],
    settings: RunSettings,
) -> str:
    """The card as text.

    Args:
        method: What the student learnt by.
        seed: Of the run.
        measured: Columns of the table of what is reached: qualities by name of the file, or ``"teacher"``.
        result: ``data``, ``normalisation``, ``images``, ``chosen_on``, ``networks``, ``environment``, and the protocol
            of the ``qualities``.
        settings: Of the run; those that differ from their defaults are told.
    """
    student = result["networks"]["student"]["name"]
    how = "trained on the labels alone" if method == "student" else f"distilled by {method}"
    parts = [
        f"# {student}, {how}",
        _what(method, seed, result),
        *("## Loading it", _loading(student, result)),
        *("## What it reaches", *_reached(measured, result)),
        *("## What it costs", *_cost(result)),
        *("## What it was made with", *_made_with(result, settings)),
    ]
    return "\n\n".join(parts) + "\n"


def _what(method: str, seed: int, result: dict[str, Any]) -> str:
    classes, shape = result["data"]["classes"], _shape(result, " × ")
    return (
        f"A classifier of {len(classes)} classes for images of {shape} (channels × height × width), made by "
        f"`amkd-distill` with the method `{method}` and seed {seed}."
    )


def _loading(student: str, result: dict[str, Any]) -> str:
    allowed = f', network="{student}"' if networks.is_users(student) else ""
    return (
        "```python\nimport amkd_fast\n\n"
        f'student = amkd_fast.load_student("best.ckpt"{allowed})\n'
        f"probabilities = student(images).softmax(1)  # images [B, {_shape(result, ', ')}], pixels in [0, 1]\n"
        "names = [student.classes[number] for number in probabilities.argmax(1)]\n```\n\n"
        "`amkd-distill predict best.ckpt FOLDER` names the classes of pictures, and `amkd-distill export best.ckpt "
        "--format onnx --output FILE` makes a file for other programs."
    )


def _reached(measured: dict[str, dict[str, float | None]], result: dict[str, Any]) -> list[str]:
    protocol, chosen = result["qualities"]["protocol"], result["chosen_on"]
    if not result["images"]["validation"]:
        chosen += ", which makes its figures optimistic"
    told = {name: EVERY[name] for name in QUALITIES if any(name in found for found in measured.values())}
    rows = []
    for name, quality in told.items():
        values = [found.get(name) for found in measured.values()]
        rows.append([quality.heading, *("–" if v is None else f"{v:.{quality.digits}f}" for v in values)])
    meanings = [f"- {quality.heading}: {quality.meaning} ({quality.better} is better)" for quality in told.values()]
    return [
        _table(["", *measured], rows),
        "\n".join(meanings),
        f"On {protocol['test_images']} test images; PGD ({protocol['pgd_norm']}, radius {protocol['pgd_eps']:.4g} in "
        f"pixels of [0, 1], {protocol['attack_steps']} steps) on {protocol['attacked_images']} of them. `best.ckpt` is "
        f"of the epoch with the highest accuracy on {chosen}; `last.ckpt` is of the last epoch. Of images of another "
        "kind these figures say nothing.",
    ]


def _cost(result: dict[str, Any]) -> list[str]:
    described = {role: result["networks"][role] for role in ("student", "teacher") if role in result["networks"]}
    rows = [
        ["network", *(_cell(found["name"]) for found in described.values())],
        ["parameters", *(f"{found['parameters']:,}" for found in described.values())],
        ["bytes in memory", *(f"{found['bytes']:,}" for found in described.values())],
        ["multiply-adds an image", *(f"{found['multiply_adds']:,}" for found in described.values())],
        ["images a second", *(f"{found['images_per_second']:,.0f}" for found in described.values())],
    ]
    where = result["environment"]
    threads = f"{where['threads']} thread" + ("s" if where["threads"] != 1 else "")
    machine = where["gpu"] if where["device"].startswith("cuda") else f"{where['cpu']}, {threads}"
    return [
        _table(["", *described], rows),
        "Multiply-adds are those of convolutions and matrix products. Images a second were measured briefly, in "
        f"batches, on: {_cell(machine)}.",
    ]


def _made_with(result: dict[str, Any], settings: RunSettings) -> list[str]:
    data, images, made = result["data"], result["images"], result["environment"]
    classes = ", ".join(_cell(name) for name in data["classes"][:MOST_CLASSES])
    if len(data["classes"]) > MOST_CLASSES:
        classes += f" and {len(data['classes']) - MOST_CLASSES} more"
    mean, std = (", ".join(f"{value:.4g}" for value in result["normalisation"][name]) for name in ("mean", "std"))
    rows = [
        ["data", f"{_cell(settings.data)}: {images['student']} images for the student, {images['test']} for the test"],
        ["classes", classes],
        ["normalisation", f"mean {mean}; std {std} (inside the loaded network)"],
    ]
    if data["dropped"]:
        rows.append(["labels never seen", ", ".join(map(_cell, data["dropped"]))])
    if "teacher" in result["networks"]:
        teacher, source = result["networks"]["teacher"]["name"], result["networks"]["teacher_source"]
        trained = "" if settings.teacher is not None else f" on {images['teacher']} images"
        rows.append(["teacher", f"{_cell(teacher)}, {_cell(source)}{trained}"])
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != default_of(field) and field.name not in _TOLD:
            rows.append([_cell(field.name), _cell(value)])
    rows.append(["amkd_fast", f"{made['amkd_fast']}, commit {made['commit'] or 'unknown'}, torch {made['torch']}"])
    rows.append(["date", made["date"]])
    return [_table(["", ""], rows), "Other settings have their defaults; `config.yaml` of the result has all."]


def _shape(result: dict[str, Any], between: str) -> str:
    return between.join(map(str, result["data"]["shape"]))


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] + ["--:" if len(heads) > 1 and heads[-1] else "---"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    """Text that a table of Markdown can hold, whatever a class or a folder is called."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", text)
