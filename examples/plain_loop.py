"""AMKD in a plain PyTorch loop, on two-dimensional points: no Lightning, no command line. Runs in seconds.

python examples/plain_loop.py
"""

import torch
from torch import nn

import amkd_fast as af
from amkd_fast.losses import Adversarial

CLASSES, EPOCHS, BATCH, ATTACKED = 4, 40, 64, 16


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

    # From here on: what an existing trainer adds.
    attack = af.attacks.BoundaryAttack(teacher, preset="near_boundary", lower=-1.0, upper=1.0)
    criterion = af.AMKDLoss(temperature=3.0, triplet_weight=0.3, margin=1.0)

    student = network(16)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    step = 0
    for epoch in range(EPOCHS):
        for rows in torch.randperm(400).split(BATCH):  # the student sees 400 of the points
            images, labels = x[rows], y[rows]
            student_logits, teacher_logits = student(images), teacher(images)
            bases = af.select_boundary_bases(student_logits, teacher_logits, labels, ATTACKED, seed=step)
            found = attack(images[bases.index], bases.base, bases.target, valid=bases.valid)
            adversarial = Adversarial(
                student=student(found.images),
                teacher=found.logits,
                base=bases.base,
                target=found.target,
                source=bases.index,
                weight=found.accepted.float(),
            )
            beta = max(2.0 * (1.0 - 4.0 * epoch / (3.0 * EPOCHS)), 0.0)
            loss = criterion(student_logits, teacher_logits, labels, adversarial, boundary_weight=beta, seed=step)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            step += 1
    print(f"teacher {accuracy(teacher, x_test, y_test):.1f} %, student {accuracy(student, x_test, y_test):.1f} %")
    return accuracy(student, x_test, y_test)


if __name__ == "__main__":
    main()
