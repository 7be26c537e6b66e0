"""Augmentation of a whole batch at once, against the same for one image after another."""

import numpy as np
import pytest
import torch

from evenlens.data import augment
from evenlens.errors import UserError

PIXELS = torch.randint(0, 256, (7, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([3, 3, 0, 6, 1, 3, 2, 5])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", augment.AUGMENTS)
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_shape_and_range_stay(name, rows):
    image = augment.get(name)(PIXELS, rows, seeded())
    assert image.shape == (len(rows), 3, 24, 24)
    assert image.min() >= 0
    assert image.max() <= 255
    assert image.float().isfinite().all()


@pytest.mark.parametrize("name", augment.AUGMENTS)
def test_the_same_seed_gives_the_same_and_the_store_stays_as_it_is(name):
    before = PIXELS.clone()
    first, again = (augment.get(name)(PIXELS, ROWS, seeded(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(PIXELS, before)


@pytest.mark.parametrize("name", ["crop_flip", "resized_crop_flip"])
def test_one_image_taken_twice_is_augmented_twice(name):
    image = augment.get(name)(PIXELS, torch.zeros(6, dtype=torch.long), seeded())
    assert len({image[k].float().numpy().tobytes() for k in range(6)}) > 3


def test_none_gives_the_rows_as_they_are():
    assert torch.equal(augment.none(PIXELS, ROWS, seeded()), PIXELS[ROWS].permute(0, 3, 1, 2))


def test_flip_gives_the_image_or_its_mirror_image_half_of_the_time():
    rows = torch.zeros(400, dtype=torch.long)
    image, plain = augment.flip(PIXELS, rows, seeded()), PIXELS[0].permute(2, 0, 1)
    mirrored = torch.tensor([torch.equal(each, plain.flip(2)) for each in image])
    straight = torch.tensor([torch.equal(each, plain) for each in image])
    assert (mirrored ^ straight).all()
    assert 0.4 < mirrored.float().mean() < 0.6


def test_crop_flip_equals_numpy_padding_cropping_and_mirroring_one_by_one():
    pad = 3
    image = augment.crop_flip(PIXELS, ROWS, seeded(5))
    generator = seeded(5)  # the same draws
    shift = torch.randint(-pad, pad + 1, (2, len(ROWS), 1), generator=generator)
    mirrored = torch.rand(len(ROWS), 1, generator=generator) < 0.5
    assert shift.unique().numel() > 3
    for number, row in enumerate(ROWS):
        padded = np.pad(PIXELS[row].numpy(), ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        if mirrored[number]:
            padded = padded[:, ::-1]
        y, x = (pad + int(shift[axis, number, 0]) for axis in (0, 1))
        wanted = padded[y : y + 24, x : x + 24]
        assert (image[number].permute(1, 2, 0).numpy() == wanted).all()


def test_resized_crop_flip_of_the_whole_area_gives_the_image_or_its_mirror_image(monkeypatch):
    monkeypatch.setattr(
        torch.Tensor, "uniform_", lambda self, low, high, generator: self.fill_(1.0 if low > 0 else 0.0)
    )
    image = augment.resized_crop_flip(PIXELS, ROWS, seeded())
    plain = PIXELS[ROWS].permute(0, 3, 1, 2).float()
    for each, wanted in zip(image, plain, strict=True):
        assert torch.allclose(each, wanted, atol=1e-2) or torch.allclose(each, wanted.flip(2), atol=1e-2)


def test_resized_crop_flip_magnifies():
    """Of a ramp from left to right a part is seen: never more than the whole, and on average clearly less."""
    ramp = torch.arange(24, dtype=torch.uint8).mul(10).view(1, 1, 24, 1).expand(1, 24, 24, 3).contiguous()
    image = augment.resized_crop_flip(ramp, torch.zeros(200, dtype=torch.long), seeded())
    spread = image[:, 0].amax(2).sub(image[:, 0].amin(2)).mean(1) / 230
    assert spread.max() <= 1
    assert 0.5 < spread.mean() < 0.85
    assert spread.min() < 0.5


def test_an_unknown_augmentation_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="Unknown augmentation 'crop_flop'; did you mean 'crop_flip'"):
        augment.get("crop_flop")


def test_the_names_that_a_configuration_may_hold_are_those_that_there_are():
    from evenlens.config import AUGMENTS

    assert tuple(augment.AUGMENTS) == AUGMENTS
