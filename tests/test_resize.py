"""How a picture becomes square, and TIFF."""

from __future__ import annotations

import io

import pytest
import torch

pytest.importorskip("PIL", reason="the extra `train` is not installed")
pytest.importorskip("lightning", reason="the extra `train` is not installed")

import numpy as np
from folders import noise, picture_folder
from PIL import Image

from amkd_fast.distill import data as datasets
from amkd_fast.distill.data import pictures
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings


def levels(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (17, 17), (8, 50), (9, 8), (8, 8), (5, 7)])
def test_crop_is_the_centre_of_the_picture_with_its_shorter_side_brought_to_size(tmp_path, shape):
    pixels = noise(1, 64)[0][: shape[0], : shape[1]]
    found = pictures.read([saved(tmp_path / "a.png", pixels)], 8, False, "crop")[0]
    height, width = (8 * side // min(shape) for side in shape)  # Resize(8): the longer side is cut to a whole number
    whole = levels(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (round((side - 8) / 2) for side in (height, width))  # CenterCrop(8)
    assert torch.equal(found, whole[:, top : top + 8, left : left + 8])


def test_squash_is_the_default_and_shows_the_borders(tmp_path):
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, 20:60] = 255  # the centre alone
    path = saved(tmp_path / "wide.png", pixels)
    crop, squash, default = (pictures.read([path], 8, False, *resize)[0] for resize in (["crop"], ["squash"], []))
    assert crop.float().mean() > 240 > 150 > squash.float().mean()
    assert torch.equal(default, squash)


def test_crop_of_a_picture_too_narrow(tmp_path):
    path = saved(tmp_path / "line.png", np.zeros((1, 60_000, 3), dtype=np.uint8))
    assert pictures.read([path], 40, False).shape == (1, 3, 40, 40)
    with pytest.raises(UserError, match=r"line\.png: cropped it would be 2400000 x 40, more than 64 megapixels"):
        pictures.read([path], 40, False, "crop")


def test_folders_are_cropped_where_that_is_asked_for(tmp_path):
    root = picture_folder(tmp_path / "pets", count=2)
    wide = noise(1, 24)[0][:12]
    saved(root / "train" / "cat" / "1.png", wide)
    crop, squash = (
        datasets.load(Settings(data=str(root), image_size=12, resize=resize)).teacher.pixels[1]
        for resize in ("crop", "squash")
    )
    assert torch.equal(crop, levels(Image.fromarray(wide))[:, :, 6:18])
    assert not torch.equal(crop, squash)


def test_tiff(tmp_path):
    root = picture_folder(tmp_path / "pets", count=2)
    pixels = noise(3, 12)
    for name, options in (("2.tif", {}), ("3.TIFF", {"compression": "tiff_lzw"}), ("4.tif", {"compression": "jpeg"})):
        saved(root / "train" / "cat" / name, pixels[0], format="TIFF", **options)
    found = datasets.load(Settings(data=str(root), image_size=12)).teacher.pixels
    assert len(found) == 7
    assert torch.equal(found[2], levels(pixels[0]))
    assert torch.equal(found[3], levels(pixels[0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(tmp_path, orientation):
    pixels = noise(1, 12)[0][:8]
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = [
        pictures.read([saved(tmp_path / f"a.{form}", pixels, exif=exif)], 16, False)[0] for form in ("png", "tiff")
    ]
    assert torch.equal(*found)


@pytest.mark.filterwarnings("error")
def test_bad_tiffs_are_refused_by_name(tmp_path):
    content = io.BytesIO()
    Image.fromarray(noise(1, 64)[0]).save(content, "TIFF", compression="tiff_lzw")
    path = tmp_path / "bad.tif"
    for cut in (9, 200, len(content.getvalue()) // 2):
        path.write_bytes(content.getvalue()[:cut])
        with pytest.raises(UserError, match=r"cannot read the picture .*bad\.tif"):
            pictures.read([path], 8, False)
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(path)
    with pytest.raises(UserError, match="mode F: must be of 8 or 16 bits"):
        pictures.read([path], 8, False)
    Image.fromarray(np.full((4, 4), 513, dtype=np.uint16)).save(path)
    assert pictures.read([path], 4, True).unique().tolist() == [2]
