"""Fair latents: the cheap rival of a student. The teacher stays as it is, and only its latents are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evenlens.errors import UserError
from evenlens.generation.balancing import Grouped, quotas
from evenlens.generation.correction import correct
from evenlens.generation.distances import distances
from evenlens.generation.latent_probe import LatentProbe
from evenlens.generation.samples import Samples
from evenlens.metrics import Floats
from evenlens.run import Watch, silent

POOL = 16_384  # latents that are drawn at once
MOST_DRAWS = 20_000_000

Prior = Callable[[int, int], Tensor]  # count and seed to latents (count, D)


def normal_prior(latent_size: int) -> Prior:
    """Give latents (count, latent_size) from independent standard normal numbers."""

    def draw(count: int, seed: int) -> Tensor:
        return torch.randn(count, latent_size, generator=torch.Generator().manual_seed(seed))

    return draw


def check_normal(latents: np.ndarray) -> None:
    """Refuse latents (N, D) whose mean or standard deviation are not those of standard normal numbers.

    It asks for a tenth, and what chance explains: it finds latents of another kind, not a slight difference.
    """
    mean, deviation = float(latents.mean()), float(latents.std())
    allowed = 0.1 + 4 / math.sqrt(latents.size)
    if abs(mean) > allowed or abs(deviation - 1) > allowed:
        raise UserError(
            f"These latents have the mean {mean:.2f} and the standard deviation {deviation:.2f}, so they are not "
            "standard normal numbers: name what made them with --generator, so that more of their kind can be drawn."
        )


class Labelled(NamedTuple):
    """Latents with the groups of their images: (N, D), (N,) in [0, K), the K groups, and what share of each is wanted.

    Attributes:
        latents: (N, D) float32.
        group: (N,).
        groups: those in which images are.
        target: (K,) wanted, summing to 1.
    """

    latents: np.ndarray
    group: np.ndarray
    groups: tuple[str, ...]
    target: Floats


def labelled_latents(samples: Samples, found: Grouped) -> Labelled:
    """Give the latent of each labelled image, found by its id; images without a group are left out.

    Raises:
        UserError: a labelled image is not among the samples, or these were made on request, so that it is not their
            latents alone that decide on the group.
    """
    if samples.label is not None:
        raise UserError(
            f"{samples.folder} was made on request, with a {samples.attribute} for each image: ask its generator for "
            "what is wanted, as its latents alone do not decide."
        )
    mine = np.flatnonzero(found.tally.codes >= 0)
    ids, codes = found.labels.ids[mine], found.tally.codes[mine]
    _, rows, places = np.intersect1d(samples.ids, ids, assume_unique=True, return_indices=True)
    if len(rows) < len(ids):
        lost = np.setdiff1d(ids, samples.ids)
        raise UserError(
            f"{len(lost):,} of {len(ids):,} labelled images, such as '{lost[0]}', are not in {samples.folder}: give "
            "the labels of these samples."
        )
    present = np.flatnonzero(found.tally.counts)
    to_group = np.full(len(found.tally.categories), -1)
    to_group[present] = np.arange(len(present))
    names = tuple(found.tally.categories[k] for k in present)
    return Labelled(samples.latents[rows], to_group[codes[places]], names, found.shares[present])


@dataclass(frozen=True)
class FairLatents:
    """Latents that were chosen so that their images have the wanted shares, M of them.

    Attributes:
        latents: (M, D) float32, in random order.
        group: (M,) in [0, K), the group for which each was drawn.
        groups: the K groups in words.
        target: (K,) wanted shares.
        prior: (K,) shares that the generator has of itself, as the probe sees it.
        aimed: (K,) share of latents drawn for each group.
        expected: (K,) shares that are to be expected of their images: where the probe can often not tell, they stay
            short of the target.
        proposed: latents of the prior that were looked at.
        accepted: those of them that were accepted, before what was too much was left out.
        seed: of all random numbers.
    """

    latents: Tensor = field(repr=False)
    group: np.ndarray = field(repr=False)
    groups: tuple[str, ...]
    target: Floats
    prior: Floats
    aimed: Floats
    expected: Floats
    proposed: int
    accepted: int
    seed: int

    def __len__(self) -> int:
        return len(self.group)

    @property
    def acceptance(self) -> float:
        """Share of the prior's latents that are accepted, in (0, 1]."""
        return self.accepted / self.proposed

    def distance(self, shares: Floats) -> float:
        """Give the total variation of shares (K,) from the target, in [0, 1]."""
        return float(distances(shares, self.target)["total_variation"])

    def as_dict(self) -> dict[str, Any]:
        """Give all numbers as JSON can hold them."""
        parts = (self.target, self.prior, self.aimed, self.expected)
        names = ("target", "prior", "aimed", "expected")
        drawn = np.bincount(self.group, minlength=len(self.groups))
        return {
            "count": len(self), "seed": self.seed, "proposed": self.proposed, "accepted": self.accepted,
            "acceptance": self.acceptance, "prior_total_variation": self.distance(self.prior),
            "expected_total_variation": self.distance(self.expected),
            "groups": [
                {"name": name, "drawn": int(drawn[k]), **{key: float(part[k]) for key, part in
                                                           zip(names, parts, strict=True)}}
                for k, name in enumerate(self.groups)
            ],
        }  # fmt: skip


def draw_latents(
    probe: LatentProbe, prior: Prior, count: int, target: Floats, seed: int = 0, watch: Watch = silent
) -> FairLatents:
    """Draw latents whose images have the wanted shares of groups, and within a group are those that the prior makes.

    For each group g, latents follow p(z | g) = p(z) p(g | z) / p(g): by rejection from the prior. A latent z is taken
    with the probability sum_g a_g p(g | z) / p(g) / c, and then is for g with a probability in proportion to g's
    term; a_g is what is still to be drawn for g. The probabilities p(g | z) sum to 1, so c = max_g a_g / p(g) is never
    exceeded. It is a bound that holds for every latent, and a large pool's largest ratio, which one more latent may
    exceed, would hardly be smaller; rejection gives different latents, where importance resampling repeats them.

    Where the latent does not decide on the group, some of those drawn for g become images of other groups: M[g, h] =
    E[p(h | z) | g] of them. So a_g is not the target t, but the shares for which a M comes nearest to t, in squares.
    What then is to be expected, a M, is reported. p(g) and M are means over a pool of the prior's latents.

    Args:
        probe: says p(g | z).
        prior: gives the generator's own latents.
        count: how many, at least 1.
        target: (K,) wanted shares, summing to 1.
        seed: of all random numbers.
        watch: told of progress.

    Raises:
        UserError: nothing to draw, a target of other groups, latents of another length, or a wanted group that is so
            rare that more than 20 million latents would have to be looked at.

    Source: von Neumann, 1951, Various techniques used in connection with random digits (rejection); Tan, Shen and
    Zhou, 2020, Improving the fairness of deep generative models without retraining, arXiv 2012.04842 (the idea).
    Differs from the latter, which fits a mixture of normal distributions to the latents of each group, in that within
    a group nothing is changed; and in allowing for what the probe cannot tell.
    """
    if count < 1 or len(target) != len(probe.groups):
        raise UserError(
            f"{count} latents for {len(target)} groups cannot be drawn: ask for at least one, and for a share of each "
            f"of {', '.join(probe.groups)}."
        )
    random = np.random.default_rng(seed)
    own = probe.probability(_some(prior, random)).numpy()
    shares = own.mean(axis=0)
    mixing = own.T @ own / len(own) / shares[:, None]
    aimed = correct(target, mixing)
    wanted = quotas(aimed, count)
    _check_rare(probe.groups, wanted / shares)
    left, kept, kept_for, proposed, accepted = wanted.copy(), [], [], 0, 0
    while left.any():
        latent = _some(prior, random)
        group = _take(probe.probability(latent).numpy(), left / shares, random)
        proposed, accepted = proposed + len(group), accepted + int((group >= 0).sum())
        rows = _first(group, left)
        kept.append(latent[torch.from_numpy(rows)])
        kept_for.append(group[rows])
        left = left - np.bincount(group[rows], minlength=len(left))
        watch("latents", count - int(left.sum()), count)
    order = random.permutation(count)
    return FairLatents(
        torch.cat(kept)[torch.from_numpy(order)], np.concatenate(kept_for)[order], probe.groups, np.asarray(target),
        shares, aimed, aimed @ mixing, proposed, accepted, seed,
    )  # fmt: skip


def _check_rare(groups: tuple[str, ...], needed: Floats) -> None:
    """Refuse to look at more latents than can be: needed (K,) by each group."""
    if needed.max() > MOST_DRAWS:
        raise UserError(
            f"'{groups[int(needed.argmax())]}' is so rare that about {needed.max():,.0f} of the generator's latents "
            "would have to be looked at: ask for fewer, or give it a smaller share with --target."
        )


def _some(prior: Prior, random: np.random.Generator) -> Tensor:
    """Draw a pool from the prior, by a seed that no one is likely to have made the samples with."""
    try:
        return prior(POOL, int(random.integers(1 << 40))).float()
    except UserError as error:
        raise UserError(
            f"There are no {POOL:,} latents to choose from ({str(error).rstrip('.')}): take a generator that makes new "
            "images, or choose among those that are there with evenlens generate balance."
        ) from None


def _take(probability: Floats, weight: Floats, random: np.random.Generator) -> np.ndarray:
    """Reject or take latents: (N,) the group that each is for, -1 where it is rejected.

    Args:
        probability: (N, K) of each group.
        weight: (K,) what is to be drawn of each by its share, at least 0.
        random: numbers.
    """
    level = random.random(len(probability)) * weight.max()
    group = (level[:, None] >= (probability * weight).cumsum(axis=1)).sum(axis=1)
    return np.where(group == len(weight), -1, group)


def _first(group: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Give the rows of the first so many of each group, in order."""
    rows = np.flatnonzero(group >= 0)
    order = rows[np.argsort(group[rows], kind="stable")]
    counts = np.bincount(group[order], minlength=len(most))
    rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[group[order]]
    return np.sort(order[rank < most[group[order]]])
