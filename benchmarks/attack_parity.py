"""Whether ``official`` does what the public loop does, batch after batch: ``python -m benchmarks.attack_parity``.

200 random batches of digits over several networks, and the presets' figures on the demo's teacher.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amkd_fast.attacks import BoundaryAttack
from amkd_fast.distill import data as datasets
from amkd_fast.distill import schemas as models
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.networks.small_resnet import ResNet
from amkd_fast.distill.settings import Settings
from benchmarks import attack_checks, machine, presets, whole_attack
from benchmarks.peers import attack_loops

BATCH, BATCHES = 64, 200
EPOCHS = 6
DTYPES = (torch.float32, torch.float64)


def networks(teacher: nn.Module, data: datasets.Data) -> dict[str, nn.Module]:
    """The teacher, and networks of other kinds that are trained for seconds."""
    channels, side = data.test.pixels.shape[1:3]
    sizes = {"width": 8, "blocks": 1, "channels": channels, "classes": len(data.classes)}
    kinds = {
        "narrow ResNet": lambda: ResNet(**{**sizes, "width": 4}),
        "ResNet": lambda: ResNet(**sizes),
        "convolutions without BatchNorm": lambda: nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, stride=2), nn.GELU(), nn.Flatten(),
            nn.Linear(16 * ((side - 1) // 2) ** 2, len(data.classes)),
        ),
        "perceptron": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(channels * side**2, 64), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, len(data.classes)),
        ),
    }  # fmt: skip
    return {"the demo's teacher": teacher} | {name: trained(make, data) for name, make in kinds.items()}


def trained(make: Any, data: datasets.Data) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    images = data.teacher.images
    for epoch in range(EPOCHS):
        order = torch.randperm(len(data.teacher.labels), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), data.teacher.labels[rows]).backward()
            optimizer.step()
    return network.eval()


def parity(network: nn.Module, images: Tensor, batches: int) -> dict[str, Any]:
    """How far pixels are apart with folding and compaction off, and how often samples end alike with both on."""
    found: dict[str, Any] = {"batches": batches, "samples": batches * BATCH}
    for dtype in DTYPES:
        quiet = attack_loops.quiet(network).to(dtype)
        plain = BoundaryAttack(whole_attack.plain(quiet), preset="official", compact=False)
        fast = BoundaryAttack(quiet, preset="official")
        away, same = [], 0
        for number in range(batches):
            draws = torch.Generator().manual_seed(number)
            rows = torch.randint(len(images), (BATCH,), generator=draws)
            batch = whole_attack.chase(quiet, images[rows].to(dtype), seed=number)
            loop = attack_loops.bss_loop_lean(quiet, *batch)
            away.append((plain(*batch).images - loop.images).abs().flatten(1).amax(1))
            same += int((fast(*batch).status == loop.status).sum())
        away = torch.cat(away)
        found[str(dtype).removeprefix("torch.")] = {
            "largest": away.max().item(),
            "samples_beyond_1e-5": int((away > attack_checks.SAME_PIXELS).sum()),
            "same_status": same / away.numel(),
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack_parity", description=__doc__.splitlines()[0])
    parser.add_argument("teacher", help="the teacher.ckpt of `make demo`")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    machine.use_threads()
    teacher, _, about = load_network(options.teacher)
    data = datasets.load(models.settings(Settings, about["settings"], options.teacher))
    lower, upper = data.bounds()
    found = networks(teacher.eval(), data)
    share = -(-BATCHES // len(found))
    report: dict[str, Any] = {"kind": "attack_parity", "machine": machine.describe(), "parity": {}}
    for name, network in found.items():
        report["parity"][name] = row = parity(network, data.test.images, share)
        print(f"{name}, {row['batches']} batches of {BATCH}")
        for dtype in ("float32", "float64"):
            part = row[dtype]
            print(
                f"  {dtype}: largest difference {part['largest']:.1e}, {part['samples_beyond_1e-5']} of "
                f"{row['samples']} samples beyond 1e-5; same status {part['same_status']:.2%}"
            )
    right = data.test.images[teacher(data.test.images).argmax(1) == data.test.labels]
    report["presets"] = presets.presets_on(teacher, right, lower, upper)
    presets.print_presets(report["presets"])
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
