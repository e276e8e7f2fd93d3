"""What a training leaves to use: kept students, loading, predicting, exporting, the model card."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import time

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")

import kills
import processes
from folders import picture_folder
from PIL import Image

import amkd_fast
from amkd_fast.distill import checkpoint, cost, exit_codes, kept_students, networks
from amkd_fast.distill import export as exports
from amkd_fast.distill.cli import main
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.settings import CompareSettings, Settings

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
CLASSES = ["cat", "dog", "a | b"]


@pytest.fixture(scope="module")
def student_file(tmp_path_factory):
    """A checkpoint of a colour network for pictures of 12 x 12, with running statistics that are not 0 and 1."""
    path = tmp_path_factory.mktemp("student") / "best.ckpt"
    checkpoint.save_network(path, network(), SPEC, about(data="pictures", image_size=12))
    return path


SPEC = Spec("small-2-1", channels=3, classes=3)


def network():
    built = networks.build(SPEC, seed=3)
    with torch.no_grad():
        built(torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
    return Normalised(built, MEAN, STD).eval()


def about(**settings):
    settings = Settings(**settings).as_dict()
    return {"method": "kd", "seed": 0, "classes": CLASSES, "mean": MEAN, "std": STD, "settings": settings}


def images(count=5, seed=1):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


# --- loading


def test_a_loaded_student_answers_pixels_as_its_network_answers_normalised_ones(student_file):
    student, expected = amkd_fast.load_student(student_file), network()
    assert student.classes == tuple(CLASSES)
    assert student.shape == (3, 12, 12)
    assert not any(module.training for module in student.modules())
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        assert torch.equal(student(images()), expected(images()))
        torch.testing.assert_close(student(images()), expected.network((images() - mean) / std), rtol=1e-5, atol=1e-5)


def test_importing_the_package_imports_nothing_of_the_trainer():
    code = "import sys, amkd_fast; print([name for name in sys.modules if name.startswith('amkd_fast.distill')])"
    import subprocess
    import sys

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
