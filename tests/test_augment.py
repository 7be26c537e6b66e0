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


@pytest.mark.parametrize("name", ["crop_flip", "resized_crop_flip", "resized_crop_flip_jitter"])
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


def test_jitter_is_torchvisions_brightness_then_contrast_then_saturation_image_by_image():
    from torchvision.transforms import functional

    image = PIXELS[ROWS].permute(0, 3, 1, 2).float()
    factors = torch.empty(3, len(ROWS)).uniform_(0.6, 1.4, generator=seeded(6))
    changed = augment._jitter(image, *factors.view(3, -1, 1, 1, 1))
    for number, each in enumerate(image / 255):
        each = functional.adjust_brightness(each, float(factors[0, number]))
        each = functional.adjust_contrast(each, float(factors[1, number]))
        each = functional.adjust_saturation(each, float(factors[2, number]))
        assert torch.allclose(changed[number] / 255, each, atol=2e-3)  # its weights of the luma are rounded


def test_the_jitter_reaches_four_images_in_five_each_by_its_own_factors():
    pixels = torch.full((1, 16, 16, 3), 100, dtype=torch.uint8)
    image = augment.resized_crop_flip_jitter(pixels, torch.zeros(500, dtype=torch.long), seeded())
    level = image.mean((1, 2, 3))
    changed = (level - 100).abs() > 0.01
    assert 0.74 < changed.float().mean() < 0.86
    assert level[changed].min() >= 59.9
    assert level[changed].max() <= 140.1
    assert level[changed].std() > 15


def test_the_jitter_makes_nothing_grey_and_no_grey_coloured_and_turns_no_hue():
    """Colour may be what tells the groups apart: channels keep their order and, but for a factor, their distances."""
    grey = (
        torch.randint(60, 180, (1, 16, 16, 1), dtype=torch.uint8, generator=seeded()).expand(1, 16, 16, 3).contiguous()
    )
    red = torch.tensor([160, 100, 80], dtype=torch.uint8).expand(1, 16, 16, 3).contiguous()
    rows = torch.zeros(200, dtype=torch.long)
    still_grey = augment.resized_crop_flip_jitter(grey, rows, seeded())
    assert (still_grey.amax(1) - still_grey.amin(1)).max() < 0.01
    still_red = augment.resized_crop_flip_jitter(red, rows, seeded())[:, :, 8, 8]
    first, second = still_red[:, 0] - still_red[:, 1], still_red[:, 1] - still_red[:, 2]
    assert first.min() > 15
    assert (first / second).sub(3).abs().max() < 0.01


def test_the_views_cut_a_fifth_of_the_area_at_least(monkeypatch):
    """Of a ramp from left to right, the part that is seen is never narrower than 0.2 of the area at 3:4 allows."""
    monkeypatch.setattr(augment, "_jitter", lambda image, *factors: image)
    ramp = torch.arange(24, dtype=torch.uint8).mul(10).view(1, 1, 24, 1).expand(1, 24, 24, 3).contiguous()
    rows = torch.zeros(400, dtype=torch.long)
    widths = {}
    for name in ("resized_crop_flip", "resized_crop_flip_jitter"):
        image = augment.get(name)(ramp, rows, seeded())
        widths[name] = (image[:, 0].amax(2).sub(image[:, 0].amin(2)).mean(1) / 240).min().item()
    assert widths["resized_crop_flip_jitter"] > (0.2 * 0.75) ** 0.5 - 2 / 24
    assert widths["resized_crop_flip"] < widths["resized_crop_flip_jitter"] - 0.05


def test_an_unknown_augmentation_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="Unknown augmentation 'crop_flop'; did you mean 'crop_flip'"):
        augment.get("crop_flop")


def test_the_names_that_a_configuration_may_hold_are_those_that_there_are():
    from evenlens.config import AUGMENTS

    assert tuple(augment.AUGMENTS) == AUGMENTS


def test_rotate_flip_jitter_turns_mirrors_and_changes_as_torchvision_does_one_by_one(monkeypatch):
    functional = pytest.importorskip("torchvision.transforms.functional")
    from torchvision.transforms import InterpolationMode

    image = augment.rotate_flip_jitter(PIXELS, ROWS, seeded(7)) / 255
    generator = seeded(7)  # the same draws
    num = len(ROWS)
    mirrored = torch.rand(2, num, generator=generator) < 0.5
    angle = torch.empty(num).uniform_(-20.0, 20.0, generator=generator)
    brightness, contrast = torch.empty(2, num).uniform_(0.9, 1.1, generator=generator)
    hue = torch.empty(num).uniform_(-0.1, 0.1, generator=generator)
    assert mirrored.any(1).all()
    inside = slice(9, 15)  # where no corner that a turn brings in can be
    for number, row in enumerate(ROWS):
        each = PIXELS[row].permute(2, 0, 1) / 255
        each = functional.hflip(each) if mirrored[0, number] else each
        each = functional.vflip(each) if mirrored[1, number] else each
        turn = float(angle[number])
        each = functional.rotate(each, turn, InterpolationMode.BILINEAR)
        each = (each * brightness[number]).clamp(0, 1)
        whole = (image_of_turned(PIXELS[row], mirrored[:, number], turn) * brightness[number]).clamp(0, 1)
        each = torch.lerp(functional.rgb_to_grayscale(whole).mean(), each, contrast[number]).clamp(0, 1)
        each = functional.adjust_hue(each, float(hue[number]))
        assert (image[number] - each)[:, inside, inside].abs().max() < 0.02


def image_of_turned(pixels, mirrored, turn):
    """The turned image, its corners filled by what is mirrored outwards: contrast turns about its mean."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as torchvision

    size = pixels.shape[0]
    padded = np.pad(pixels.numpy(), ((size, size), (size, size), (0, 0)), mode="symmetric")
    each = torch.from_numpy(padded).permute(2, 0, 1) / 255
    each = torchvision.hflip(each) if mirrored[0] else each
    each = torchvision.vflip(each) if mirrored[1] else each
    return torchvision.rotate(each, turn, InterpolationMode.BILINEAR)[:, size:-size, size:-size]


def test_rotate_flip_jitter_keeps_a_grey_image_grey_and_within_a_tenth():
    grey = torch.full((1, 16, 16, 3), 100, dtype=torch.uint8)
    image = augment.rotate_flip_jitter(grey, torch.zeros(300, dtype=torch.long), seeded())
    assert (image.amax(1) - image.amin(1)).max() < 0.01
    level = image.mean((1, 2, 3))
    assert 89.9 < level.min() < 92
    assert 108 < level.max() < 110.1
