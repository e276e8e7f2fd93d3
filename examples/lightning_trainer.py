"""AMKD in a LightningModule of your own: the training step calls a method object. Needs lightning; runs in seconds.

python examples/lightning_trainer.py
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from amkd_fast.methods import AMKD, Batch, Method, StepContext

CLASSES, EPOCHS, BATCH = 4, 40, 64


def points(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four overlapping spiral arms."""
    labels = torch.randint(CLASSES, (count,))
    radius = torch.rand(count)
    angle = 4.0 * radius + labels * (2.0 * torch.pi / CLASSES) + 0.15 * torch.randn(count)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))


class Distilled(lightning.LightningModule):
    def __init__(self, student: nn.Module, teacher: nn.Module, method: Method) -> None:
        super().__init__()
        self.student, self.teacher, self.method = student, teacher.eval().requires_grad_(False), method

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        # A number that no other batch of the run has, also where gradients are accumulated.
        draw = self.current_epoch * self.trainer.num_training_batches + batch_idx
        moment = StepContext(self.current_epoch, self.trainer.max_epochs, draw)
        losses = self.method(Batch(images, labels), self.teacher, self.student, moment)
        self.log_dict({f"train/{name}": part for name, part in losses.parts.items()}, on_step=False, on_epoch=True)
        return losses.total

    def validation_step(self, batch, batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", 100.0 * (self.student(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.student.parameters(), lr=1e-2)


def main() -> float:
    torch.set_num_threads(1)  # these networks are too small to share
    torch.manual_seed(0)
    (x, y), test = points(2000), TensorDataset(*points(1000))
    teacher = network(64)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(x), y).backward()
        optimizer.step()

    # The bounds are those of the inputs, as the networks see them.
    method = AMKD(limit=16, boundary_weight=1.0, attack={"lower": -1.0, "upper": 1.0})
    module = Distilled(network(32), teacher, method)
    flags = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    more = {"max_epochs": EPOCHS, "check_val_every_n_epoch": EPOCHS, **dict.fromkeys(flags, False)}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, **more)
    train = DataLoader(TensorDataset(x[:400], y[:400]), BATCH, shuffle=True)  # the student sees 400 of the points
    trainer.fit(module, train, DataLoader(test, 500))
    print(", ".join(f"{name} {float(value):.3f}" for name, value in sorted(trainer.callback_metrics.items())))
    return float(trainer.callback_metrics["accuracy"])


if __name__ == "__main__":
    main()
