"""Clean images beside their boundary samples, as PNG bytes."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from amkd_fast.distill.attack_examples import AttackExamples
from amkd_fast.distill.data import Data
from amkd_fast.distill.report.style import picture, short

SAMPLES = 6
NAME = 10  # characters of a class that fit above a picture


@picture
def samples(examples: AttackExamples, data: Data) -> Figure:
    """Clean images, boundary samples and what was changed, with the teacher's probabilities of base and target."""
    shown = _varied(examples)
    if not shown:
        figure = Figure(figsize=(6.0, 1.5))
        figure.text(0.5, 0.5, "the teacher classifies no test image rightly", ha="center", va="center")
        return figure
    presets = list(examples.samples)
    count = len(shown)
    figure = Figure(figsize=(1.5 * count + 0.6, 1.95 * (1 + 2 * len(presets)) + 0.8), layout="constrained")
    grid = figure.subplots(1 + 2 * len(presets), count, squeeze=False)
    clean = examples.images.cpu()
    changed = {name: part.images.cpu() - clean for name, part in examples.samples.items()}
    limit = max(1e-6, max(float(part[shown].abs().max()) for part in changed.values()))
    for column, row in enumerate(shown):
        base, target = int(examples.base[row]), int(examples.target[row])
        head = f"{short(data.classes[base], NAME)} → {short(data.classes[target], NAME)}"
        _picture(grid[0][column], clean[row], f"{head}\n{_odds(examples.logits[row], data, base, target)}")
        for block, (name, part) in enumerate(examples.samples.items()):
            aimed, landed = int(part.target[row]), int(part.logits[row].argmax())
            note = _odds(part.logits[row], data, base, aimed)
            if aimed != target:
                note = f"target {short(data.classes[aimed], NAME)}\n{note}"
            elif landed not in (base, aimed):
                note = f"{note}\n{_odds(part.logits[row], data, landed)}"
            _picture(grid[1 + 2 * block][column], clean[row] + changed[name][row], note)
            shade = _difference(grid[2 + 2 * block][column], changed[name][row], limit)
    names = ["clean", *(text for name in presets for text in (name, "difference"))]
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=11)
    label = "change of a pixel (the pixels being in 0 to 1)"
    figure.colorbar(shade, ax=grid, label=label, location="bottom", shrink=0.5, aspect=40)
    return figure


def _varied(examples: AttackExamples) -> list[int]:
    """Rows of as many different base classes as fit."""
    first = {int(label): row for row, label in reversed(list(enumerate(examples.base.tolist())))}
    rows = [first[label] for label in sorted(first)]
    rows += [row for row in range(len(examples.base)) if row not in rows]
    return rows[:SAMPLES]


def _odds(logits: torch.Tensor, data: Data, *classes: int) -> str:
    chances = logits.float().softmax(0)
    return "\n".join(f"p({short(data.classes[c], NAME)}) = {float(chances[c]):.2f}" for c in classes)


def _picture(axes: Any, image: torch.Tensor, title: str) -> None:
    pixels = image.clamp(0.0, 1.0).permute(1, 2, 0).numpy()
    axes.imshow(pixels.squeeze(), cmap="gray", vmin=0.0, vmax=1.0)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def _difference(axes: Any, change: torch.Tensor, limit: float) -> Any:
    shade = axes.imshow(change.mean(0).numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(f"L2 {float(change.norm()):.2f}", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return shade
