"""CIFAR-10 and CIFAR-100 (fine labels) as their archives unpack, of the python or of the binary version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from amkd_fast.distill.data import cifar_files, pictures, subsets
from amkd_fast.distill.data.split import Source, Split
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

LEVEL = 1.0 / 255.0


class Archive(NamedTuple):
    """What a set's files are called."""

    dataset: str  # torchvision's class
    python: str  # folder of the python version
    binary: str  # folder of the binary version
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str  # key of a pickle
    meta: tuple[str, str]  # pickle of the class names, and their key
    names: str  # text file of the class names
    skip: int  # label bytes before the one that counts


ARCHIVES = {
    "cifar10": Archive(
        "CIFAR10",
        "cifar-10-batches-py",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "labels",
        ("batches.meta", "label_names"),
        "batches.meta.txt",
        0,
    ),
    "cifar100": Archive(
        "CIFAR100",
        "cifar-100-python",
        "cifar-100-binary",
        ("train",),
        ("test",),
        "fine_labels",
        ("meta", "fine_label_names"),
        "fine_label_names.txt",
        1,  # the coarse one
    ),
}


def read(settings: Settings) -> Source:
    """The set that ``settings.data`` names, from where its archive was unpacked; nothing is downloaded.

    ``settings.data_root`` is the folder that holds the archive's folder, or that folder itself. The python version is
    read by torchvision where that is installed, which compares checksums.

    Raises:
        UserError: It is not there, is broken, or ``settings.image_size`` is not 32.
    """
    if settings.image_size not in (None, cifar_files.SIDE):
        raise UserError(f"--image-size {settings.image_size}: the images of {settings.data} are 32 x 32")
    archive = ARCHIVES[settings.data]
    folder, binary = _find(Path(settings.data_root), archive, settings.data)
    datasets = None if binary or folder.name != archive.python else _torchvision()
    if datasets is not None:
        train, test, classes = _by_torchvision(datasets, folder, archive)
    elif binary:
        classes = cifar_files.listed_names(folder / archive.names)
        train, test = (
            cifar_files.from_binary([folder / f"{file}.bin" for file in files], archive.skip, len(classes))
            for files in (archive.train, archive.test)
        )
    else:
        classes = cifar_files.pickled_names(folder / archive.meta[0], archive.meta[1])
        train, test = (
            cifar_files.from_pickles([folder / file for file in files], archive.labels, len(classes))
            for files in (archive.train, archive.test)
        )
    source = subsets.of_classes(Source(train, test, classes, LEVEL), settings.classes)
    if settings.grayscale:
        train, test = (Split(pictures.grey(part.levels), part.labels) for part in (source.train, source.test))
        source = source._replace(train=train, test=test)
    return source


def _find(root: Path, archive: Archive, name: str) -> tuple[Path, bool]:
    """Where the files are, and whether they are the binary version's."""
    for folder in (root / archive.python, root / archive.binary, root):
        for suffix in ("", ".bin"):
            if (folder / (archive.train[0] + suffix)).is_file():
                return folder, bool(suffix)
    file = archive.python.replace("-batches-py", "-python") + ".tar.gz"
    raise UserError(
        f"--data {name}: there is no {archive.python}/{archive.train[0]} (nor {archive.binary}/{archive.train[0]}.bin)"
        f" in {root.resolve()}; unpack {file} there, or name the folder it is in with --data-root"
    )


def _torchvision() -> Any:
    try:
        from torchvision import datasets
    except Exception:  # one that was built for another torch raises what it likes; it is not needed
        return None
    return datasets


def _by_torchvision(datasets: Any, folder: Path, archive: Archive) -> tuple[Split, Split, tuple[str, ...]]:
    def split(train: bool) -> tuple[Split, tuple[str, ...]]:
        found = getattr(datasets, archive.dataset)(str(folder.parent), train=train, download=False)
        pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()  # from [N, 32, 32, 3]
        return Split(pixels, torch.tensor(found.targets, dtype=torch.int64)), tuple(found.classes)

    try:
        (train, classes), (test, _) = split(True), split(False)
    except (RuntimeError, OSError) as error:
        raise UserError(f"--data: torchvision refuses {folder}: {' '.join(str(error).split())}") from error
    return train, test, classes
