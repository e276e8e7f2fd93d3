"""AMKD in a transformers.Trainer whose compute_loss calls a method object. Fetches nothing; runs in seconds.

python examples/hf_trainer.py
"""

import tempfile

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from amkd_fast.methods import AMKD, Batch, LogitsOf, Method, StepContext

CLASSES, EPOCHS, BATCH = 4, 40, 64


def points(count: int) -> list[dict[str, torch.Tensor]]:
    """Four overlapping spiral arms."""
    labels, radius = torch.randint(CLASSES, (count,)), torch.rand(count)
    angle = 4.0 * radius + labels * (2.0 * torch.pi / CLASSES) + 0.15 * torch.randn(count)
    values = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return [{"pixel_values": value, "labels": label} for value, label in zip(values, labels, strict=True)]


class Classifier(nn.Module):
    """Answers as the image classifiers of transformers do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
        self.network = nn.Sequential(*layers)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        logits = self.network(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class Distiller(Trainer):
    def __init__(self, *args, teacher: nn.Module, method: Method, **options) -> None:
        super().__init__(*args, **options)
        device = self.args.device
        self.teacher, self.method, self.parts = LogitsOf(teacher.eval().to(device)), method.to(device), {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:  # evaluate() and predict(): the model's own
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # state.epoch counts in fractions; global_step counts optimizer steps: with accumulation count batches instead.
        moment = StepContext(int(self.state.epoch), self.state.num_train_epochs, draw=self.state.global_step)
        losses = self.method(Batch(inputs["pixel_values"], inputs["labels"]), self.teacher, LogitsOf(model), moment)
        self.parts = losses.parts
        return losses.total

    def log(self, logs, start_time=None):
        parts = self.parts if "loss" in logs else {}  # neither in the summary nor in evaluate()
        super().log({**logs, **{name: float(part) for name, part in parts.items()}}, start_time)


def main() -> float:
    torch.set_num_threads(1)  # these networks are too small to share
    torch.manual_seed(0)
    train, test = points(2000), points(1000)
    plain = {"num_train_epochs": EPOCHS, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 70}
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, per_device_train_batch_size=BATCH, **plain, **quiet)
        teacher = Classifier(64)
        Trainer(teacher, arguments, train_dataset=train).train()
        method = AMKD(limit=16, boundary_weight=1.0, attack={"lower": -1.0, "upper": 1.0})
        trainer = Distiller(Classifier(32), arguments, train_dataset=train[:400], teacher=teacher, method=method)
        trainer.train()
        logits, labels, _ = trainer.predict(test)
    return 100.0 * float((logits.argmax(1) == labels).mean())


if __name__ == "__main__":
    print(f"student {main():.1f} %")
