"""AMKD in a plain PyTorch loop, on two-dimensional points: no Lightning, no command line. Runs in seconds.

python examples/plain_loop.py
"""

import torch
from torch import nn

from amkd_fast.methods import AMKD, Batch, StepContext

CLASSES, EPOCHS, BATCH = 4, 40, 64


def points(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four overlapping spiral arms."""
    labels = torch.randint(CLASSES, (count,))
    radius = torch.rand(count)
    angle = 4.0 * radius + labels * (2.0 * torch.pi / CLASSES) + 0.15 * torch.randn(count)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return 100.0 * float((model(x).argmax(1) == y).float().mean())


def main() -> float:
    torch.set_num_threads(1)  # these networks are too small to share
    torch.manual_seed(0)
    (x, y), (x_test, y_test) = points(2000), points(1000)

    teacher = network(64)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(x), y).backward()
        optimizer.step()
    teacher.eval().requires_grad_(False)

    # From here on: what an existing trainer changes. The bounds are those of the inputs, as the networks see them.
    method = AMKD(limit=16, attack={"lower": -1.0, "upper": 1.0})

    student = network(32)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    step = 0
    for epoch in range(EPOCHS):
        student.train()
        for rows in torch.randperm(400).split(BATCH):  # the student sees 400 of the points
            losses = method(Batch(x[rows], y[rows]), teacher, student, StepContext(epoch, EPOCHS, draw=step))
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            step += 1
        if epoch % 10 == 0:
            print(f"epoch {epoch}:", ", ".join(f"{name} {part:.3f}" for name, part in losses.parts.items()))
    student.eval()
    print(f"teacher {accuracy(teacher, x_test, y_test):.1f} %, student {accuracy(student, x_test, y_test):.1f} %")
    return accuracy(student, x_test, y_test)


if __name__ == "__main__":
    main()
