"""The tone-leak test: whether a drawing still tells how dark the photograph, and so the skin, is.

Three things are asked of a view that is to take tone away: whether it draws the same in less light, whether it puts as
much ink on the darkest images as on the lightest, and whether the groups are harder to tell from it than from grey.

Source: the rule was made for this project, from what XDoG and other operators did to dark skin. Probes of what a
representation holds: Alain and Bengio, 2016, arXiv 1610.01644.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evenlens import engine, metrics, probes, view
from evenlens.data.dataset import FairDataset, Splits
from evenlens.errors import UserError
from evenlens.metrics import Floats, Interval
from evenlens.metrics.resampling import central
from evenlens.probes import DISCRIMINATORS, Guesses, Rows
from evenlens.view import View
from evenlens.views._filters import blurred, in_pixels

MOST, FEW = 4000, 256  # images that a probe learns from, or is judged on; and that are looked at more closely
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)  # of its values to which a photograph is darkened
POOLED = 8  # a probe sees this many means along each side
SIGMA = 12.0  # of the low-pass, in pixels of an image of 256
TENTH, LEAST = 0.1, 20  # share of the darkest and of the lightest images, and their number at least
LEVEL = 1 / 255  # less mean ink than one level of eight bits counts as this much
MOST_CHANGE, MOST_INK, NEGLIGIBLE = 0.03, 1.5, 0.05
BATCH_PIXELS = 1 << 20  # of a batch: 256 images of 64 px
REPLICATES = 1000
TESTS = ("exposure", "ink", "probe")
YES, NO, UNCLEAR, UNDEFINED = "yes", "no", "not clear", "undefined"
SAID = {YES: "passed", NO: "not passed", UNCLEAR: "not clear", UNDEFINED: "undefined"}
UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)

Watch = Callable[[str, int, int], None]


class Probe(NamedTuple):
    """How well one discriminator tells the groups from 64 means of an image, as balanced accuracy over the groups.

    Attributes:
        discriminator: "linear" or "mlp", which has one hidden layer.
        grey: from the luma.
        drawing: from what the view shows.
        difference: grey minus drawing, paired.
        chance: one over the number of groups.
    """

    discriminator: str
    grey: Interval[float]
    drawing: Interval[float]
    difference: Interval[float]
    chance: float


@dataclass(frozen=True)
class ToneLeak:
    """What a view lets through of tone. Every number has a 95 % interval over images; undefined is NaN.

    Attributes:
        exposure: mean absolute difference of the drawings, in [0, 1], when photographs are darkened to a share of their
            values, by share ("0.9" to "0.5").
        exposure_of_grey: the same of the luma.
        ink_darkest: mean ink, 1 minus the drawing, in the middle of the tenth of images with the darkest middle.
        ink_lightest: the same of the lightest tenth.
        ink_ratio: the darkest's divided by the lightest's.
        probes: of each discriminator.
        correlation: mean over images of the correlation between the blurred luma and the blurred drawing.
        left_out: names of groups that only one side has, so that no probe is about them.
    """

    exposure: dict[str, Interval[float]]
    exposure_of_grey: dict[str, Interval[float]]
    ink_darkest: Interval[float]
    ink_lightest: Interval[float]
    ink_ratio: Interval[float]
    probes: tuple[Probe, ...]
    correlation: Interval[float]
    left_out: tuple[str, ...] = ()

    @property
    def half(self) -> Interval[float]:
        """How much the drawings change when photographs are darkened to one half."""
        return self.exposure[str(SHARES[-1])]

    @property
    def linear(self) -> Probe:
        """The linear probe, which the verdict is about."""
        return self.probes[0]

    @property
    def verdicts(self) -> dict[str, str]:
        """Say of each test whether it is passed: "yes", "no", "not clear" or "undefined".

        Of exposure and ink the whole interval has to lie within the limits, or beyond one of them. The probe is passed
        where grey tells the groups and the interval of grey minus drawing lies above 0; not for sure, if a group is
        left out. It is not passed where the drawing tells the groups and that interval ends below 5 points.
        """
        probe = self.linear
        grey_tells, drawing_tells = (found.low > probe.chance for found in (probe.grey, probe.drawing))
        if math.isnan(probe.difference.low):
            told = UNDEFINED
        elif grey_tells and probe.difference.low > 0:
            told = UNCLEAR if self.left_out else YES
        else:
            told = NO if drawing_tells and probe.difference.high < NEGLIGIBLE else UNCLEAR
        exposure, ink = _within(self.half, 0.0, MOST_CHANGE), _within(self.ink_ratio, 1 / MOST_INK, MOST_INK)
        return dict(zip(TESTS, (exposure, ink, told), strict=True))

    @property
    def words(self) -> list[str]:
        """Say of each test what was found, in a sentence or two."""
        verdicts, probe = self.verdicts, self.linear
        half, grey, ratio = self.half, self.exposure_of_grey[str(SHARES[-1])], self.ink_ratio
        found = {
            "exposure": f"in half the light the drawings change by {_number(half, 3)}, and grey by {grey.value:.3f}; "
            f"up to {MOST_CHANGE} passes.",
            "ink": f"the darkest tenth has {_number(ratio, 2)} times the ink of the lightest; 1/{MOST_INK} to "
            f"{MOST_INK} passes.",
            "probe": f"the groups are told right in {_percent(probe.grey)} % by {POOLED} x {POOLED} means of grey, in "
            f"{_percent(probe.drawing)} % by those of the drawings; grey less drawings is "
            f"{_percent(probe.difference, 2)} points; guessing gives {100 * probe.chance:.1f} %."
            f"{self.remark and f' {self.remark}'}",
        }
        missing = {
            "exposure": "too few images.",
            "ink": "too few images, or hardly any ink in the middle of them.",
            "probe": "there are not two groups that have both training and validation images.",
        }
        return [
            f"{test.capitalize()} {SAID[verdicts[test]]}: "
            f"{missing[test] if verdicts[test] == UNDEFINED else found[test]}"
            for test in TESTS
        ]

    @property
    def remark(self) -> str:
        """Say what a reader of the probe's numbers might overlook; "" where there is nothing."""
        probe, left_out = self.linear, len(self.left_out)
        drawing_tells, said = probe.drawing.low > probe.chance, []
        if probe.grey.low <= probe.chance:
            more = ", and the drawings do." if drawing_tells else ", so that nothing can be hidden."
            said.append(f"Grey itself does not tell the groups{more}")
        elif probe.difference.low > 0 and drawing_tells:
            said.append("The drawings still tell something of the group.")
        if left_out:
            of = f"Group “{self.left_out[0]}” is" if left_out == 1 else f"{left_out} groups are"
            said.append(f"{of} left out, having training or validation images alone.")
        return " ".join(said)

    def as_dict(self) -> dict[str, Any]:
        """Give it as what JSON can hold: an interval is an object, undefined is null; with verdicts and words."""
        numbers = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {**numbers, "verdicts": self.verdicts, "words": self.words}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ToneLeak:
        """Read what `as_dict` gave; verdicts and words are made anew."""
        read: dict[str, Any] = {field.name: content[field.name] for field in fields(cls)}
        for name in ("ink_darkest", "ink_lightest", "ink_ratio", "correlation"):
            read[name] = _interval(read[name])
        for name in ("exposure", "exposure_of_grey"):
            read[name] = {share: _interval(found) for share, found in read[name].items()}
        read["probes"] = tuple(_probe(each) for each in read["probes"])
        read["left_out"] = tuple(read["left_out"])
        return cls(**read)


def _silent(what: str, done: int, total: int) -> None:
    """Watch nothing."""


def measure(
    drawer: View, photographs: Splits, drawn: Splits | None = None, *, seed: int = 0, watch: Watch = _silent
) -> ToneLeak:
    """Measure what a view lets through of tone.

    A probe learns from at most 4,000 training images and is judged on at most 4,000 validation images, both drawn by
    the seed; test images are never opened. It sees 8 x 8 means of an image, whatever its size. Images count as
    independent: of several of one person, the intervals are too narrow.

    Args:
        drawer: the view, prepared; it is moved to the device that is computed on.
        photographs: the data as they are without a view.
        drawn: the same data as the view shows them; without it they are drawn here, and not kept.
        seed: of the images that are drawn by lot, of the probes and of the bootstraps.
        watch: told how many images are looked at.

    Raises:
        UserError: the drawings are of other images.
    """
    if drawn is not None and drawn.fingerprint != photographs.fingerprint:
        raise UserError(
            f"The drawings have the fingerprint {drawn.fingerprint} and the photographs {photographs.fingerprint}: "
            "they are not of the same images and split."
        )
    drawer = drawer.to(engine.start())
    chosen = {name: _drawn_by_lot(len(getattr(photographs, name)), seed) for name in ("train", "val")}
    few = chosen["val"][:FEW]
    total, done = sum(map(len, chosen.values())) + len(few), 0

    def looked(num: int) -> None:
        nonlocal done
        done += num
        watch("images looked at for tone", done, total)

    closely = _look_closely(drawer, _bind(photographs.val, few, looked))
    seen = {}
    for name, index in chosen.items():
        shown = None if drawn is None else _bind(getattr(drawn, name), index)
        seen[name] = _look(drawer, _bind(getattr(photographs, name), index, looked), shown)
    one_side = np.setxor1d(seen["train"].group.numpy(), seen["val"].group.numpy())
    left_out = tuple(photographs.task.group_names[k] for k in one_side)
    return ToneLeak(*closely[:2], *_ink(seen["val"], seed), _probes(seen, seed), closely[2], left_out)


def _drawn_by_lot(number: int, seed: int) -> Tensor:
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:MOST]


def _bind(part: FairDataset, index: Tensor, tick: Callable[[int], None] | None = None) -> FairDataset:
    size = part.pixels.shape[1] * part.pixels.shape[2]
    return part.select(index).on(engine.start(), batch_size=max(1, BATCH_PIXELS // size), tick=tick)


def tone(shown: Tensor) -> Tensor:
    """Give the one channel (B, 1, H, W) of what a view shows (B, 3, H, W): of colours, the luma."""
    first = shown[:, :1]
    return first if torch.equal(first.expand_as(shown), shown) else view.grey(shown)


# ---- looking at images


class _Seen(NamedTuple):
    """Of N images: pooled luma and drawing (N, 64), group (N,), mean luma and mean ink of the middle (N,)."""

    grey: Tensor
    drawing: Tensor
    group: Tensor
    luma: Tensor
    ink: Tensor


@torch.no_grad()
def _look(drawer: View, photographs: FairDataset, drawn: FairDataset | None) -> _Seen:
    """Look at images as they are kept, in eight bits."""
    parts: list[tuple[Tensor, ...]] = []
    shown = None if drawn is None else (batch.image for batch in drawn.in_order())
    for batch in photographs.in_order():
        grey = view.in_eight_bits(view.grey(batch.image))
        drawing = tone(view.in_eight_bits(drawer(batch.image)) if shown is None else next(shown))
        pooled = [functional.adaptive_avg_pool2d(image, POOLED).flatten(1) for image in (grey, drawing)]
        parts.append((*pooled, batch.group, _middle(grey), 1 - _middle(drawing)))
    return _Seen(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _middle(image: Tensor) -> Tensor:
    """Give the mean over the middle half of each side, (B,)."""
    height, width = image.shape[-2:]
    return image[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4].mean(dim=(1, 2, 3))


@torch.no_grad()
def _look_closely(
    drawer: View, photographs: FairDataset
) -> tuple[dict[str, Interval[float]], dict[str, Interval[float]], Interval[float]]:
    """Give the changes in less light, of the drawings and of grey, and the low-pass correlation."""
    changes: dict[float, list[tuple[Tensor, Tensor]]] = {share: [] for share in SHARES}
    correlations = []
    for batch in photographs.in_order():
        grey, drawing = view.grey(batch.image), tone(drawer(batch.image))
        for share in SHARES:
            dark = share * batch.image
            pairs = ((tone(drawer(dark)), drawing), (view.grey(dark), grey))
            drawing_change, grey_change = ((new - old).abs().mean(dim=(1, 2, 3)) for new, old in pairs)
            changes[share].append((drawing_change, grey_change))
        low_pass = (blurred(image, in_pixels(SIGMA, 0.5, image))[0] for image in (grey, drawing))
        correlations.append(_correlation(*low_pass))
    of_drawing, of_grey = (
        {str(share): _mean(torch.cat([pair[k] for pair in pairs]), 0.0, 1.0) for share, pairs in changes.items()}
        for k in (0, 1)
    )
    return of_drawing, of_grey, _mean(torch.cat(correlations), -1.0, 1.0)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Give Pearson's correlation over the pixels of each image (B, 1, H, W), (B,); NaN where either is one tone."""
    first, second = (image.flatten(1).double() for image in (first, second))
    first, second = (image - image.mean(dim=1, keepdim=True) for image in (first, second))
    deviations = [image.square().mean(dim=1).sqrt() for image in (first, second)]
    defined = torch.minimum(*deviations) > 1e-5  # below that it is the rounding of what was blurred
    return torch.where(defined, (first * second).mean(dim=1) / (deviations[0] * deviations[1]), torch.nan)


# ---- numbers


def _mean(values: Tensor, lowest: float, highest: float) -> Interval[float]:
    """Give a mean over images with Student's interval, within limits; images where it is undefined are left out."""
    known = values[~values.isnan()].double().cpu().numpy()
    value, low, high, n = metrics.seed_interval(known)  # which is of any independent numbers
    low, high = np.clip([low, high], lowest, highest).tolist()  # which leaves NaN as it is
    return Interval(value, low, high, n)


def _ink(seen: _Seen, seed: int) -> tuple[Interval[float], Interval[float], Interval[float]]:
    """Compare the ink of the images with the darkest and the lightest middle: of each, and the ratio.

    In a replicate all images are drawn again, and its own tenths are found.
    """
    n = len(seen.luma)
    tenth = max(LEAST, round(TENTH * n))
    if n < 2 * tenth:
        return UNKNOWN, UNKNOWN, UNKNOWN
    by_luma = seen.ink[seen.luma.argsort(stable=True)].double()
    ink = by_luma.numpy()
    drawn = np.random.default_rng(seed).integers(n, size=(REPLICATES, n), dtype=np.int16)
    drawn.sort(axis=1)  # places in the order of luma
    value = float(_ratio(ink[:tenth].mean(), ink[-tenth:].mean()))
    low, high = central(_ratio(ink[drawn[:, :tenth]].mean(axis=1), ink[drawn[:, -tenth:]].mean(axis=1)), 0.95)
    if not math.isnan(value + low):
        low, high = min(low, value), max(high, value)
    darkest, lightest = (_mean(part, 0.0, 1.0) for part in (by_luma[:tenth], by_luma[-tenth:]))
    return darkest, lightest, Interval(value, low, high, n)


def _ratio(dark: Any, light: Any) -> Floats:
    """Divide; undefined where neither has ink, and never by less than one level."""
    some = np.maximum(dark, light) >= LEVEL
    return np.where(some, dark / np.maximum(light, LEVEL), np.nan)


def _probes(seen: dict[str, _Seen], seed: int) -> tuple[Probe, ...]:
    def guessed(of: str, discriminator: str) -> Guesses:
        fit, judge = (
            Rows(getattr(part, of), torch.zeros_like(part.group), part.group) for part in (seen["train"], seen["val"])
        )
        return probes.guesses(fit, judge, discriminator, seed)

    made = []
    for discriminator in DISCRIMINATORS:
        grey, drawing = (guessed(of, discriminator) for of in ("grey", "drawing"))
        paired = probes.difference(grey, drawing, seed)
        made.append(Probe(discriminator, grey.balanced_accuracy(), drawing.balanced_accuracy(), paired, grey.chance))
    return tuple(made)


def _within(found: Interval[float], lowest: float, highest: float) -> str:
    if math.isnan(found.low):
        return UNDEFINED
    if lowest <= found.low and found.high <= highest:
        return YES
    return NO if found.high < lowest or found.low > highest else UNCLEAR


# ---- writing


def _number(found: Interval[float], digits: int) -> str:
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _percent(found: Interval[float], digits: int = 1) -> str:
    return _number(Interval(100 * found.value, 100 * found.low, 100 * found.high, found.n), digits)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _interval(found: dict[str, Any]) -> Interval[float]:
    value, low, high = (math.nan if found[name] is None else found[name] for name in ("value", "low", "high"))
    return Interval(value, low, high, found["n"])


def _probe(found: dict[str, Any]) -> Probe:
    grey, drawing, difference = (_interval(found[name]) for name in ("grey", "drawing", "difference"))
    chance = math.nan if found["chance"] is None else found["chance"]
    return Probe(found["discriminator"], grey, drawing, difference, chance)
