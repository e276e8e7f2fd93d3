"""Train the network that attacks are measured on: ``python -m benchmarks.cifar_teacher --cifar PATH --save FILE``.

A ResNet26 on CIFAR-10 by plain SGD for a few epochs, because an untrained network has no boundaries worth crossing. The
images (JPEG files, ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``) are read where they are, packed or not.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast.distill.networks import Spec, build

RESNET26 = Spec("small-16-4", channels=3, classes=10)  # with convolutions in its shortcuts
SIZE = (3, 32, 32)
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
# Of black and white in normalised units, one a channel.
LOWER, UPPER = -MEAN / STD, (1.0 - MEAN) / STD
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def files(path: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Class and content of every file of a split, out of the archive or of the folder that it unpacks to."""
    if path.is_dir():
        for file in sorted(path.glob(f"{split}/*/*.jpg")):
            yield file.parent.name, file.read_bytes()
        return
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            top, _, rest = member.name.partition("/")
            if top == split and member.isfile():
                yield rest.partition("/")[0], archive.extractfile(member).read()


def read(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels [N] of ``"train"`` or ``"test"``, in an order that mixes the classes."""
    from PIL import Image

    pixels, labels = [], []
    for name, content in files(path, split):
        pixels.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
        labels.append(CLASSES.index(name))
    if not pixels:
        raise ValueError(f"path={str(path)!r}: holds no {split}/<class>/*.jpg")
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return images[order], torch.tensor(labels)[order]


def normalise(images: Tensor) -> Tensor:
    """Pixels uint8 [..., 3, H, W] in the units of the network."""
    mean, std = (part.view(3, 1, 1).to(images.device) for part in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def crop_and_flip(images: Tensor, draws: torch.Generator) -> Tensor:
    """Shift every image by up to four pixels over black and mirror every other."""
    padded = F.pad(images, (4, 4, 4, 4))
    rows, columns = torch.randint(9, (2, len(images), 1), generator=draws) + torch.arange(32)
    mirrored = torch.rand(len(images), 1, generator=draws) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    number = torch.arange(len(images)).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int = 64) -> None:
    """SGD with Nesterov momentum on one cycle of the learning rate."""
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(images) // batch * epochs
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps, pct_start=0.25)
    network.train()
    start, done = time.perf_counter(), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=draws).split(batch):
            if len(rows) < batch:
                continue
            x = normalise(crop_and_flip(images[rows], draws)).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            done += 1
            if done % 100 == 0:
                rate = done * batch / (time.perf_counter() - start)
                print(f"step {done}/{steps}, loss {loss.item():.3f}, {rate:.0f} images/s", file=sys.stderr, flush=True)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    parts = zip(images.split(500), labels.split(500), strict=True)
    return sum((network(normalise(x)).argmax(1) == y).sum().item() for x, y in parts) / len(images)


def load(path: Path) -> nn.Module:
    """The network of a file that :func:`main` has saved, in eval mode."""
    network = build(RESNET26, 0)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cifar_teacher", description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, required=True, help="archive or folder of the images")
    parser.add_argument("--save", type=Path, required=True, help="file for the state dict")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    network = build(RESNET26, 0).to(memory_format=torch.channels_last)
    train(network, *read(options.cifar, "train"), options.epochs)
    torch.save(network.state_dict(), options.save)
    print(f"test accuracy {accuracy(network, *read(options.cifar, 'test')):.4f}, saved to {options.save}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
