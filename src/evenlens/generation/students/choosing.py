"""Which epoch of a student is kept: by a number on fixed latents, never by eye."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot

from evenlens.errors import UserError
from evenlens.generation.distances import distances
from evenlens.generation.quality import kernel_distance
from evenlens.generation.students.nets import StudentNet
from evenlens.generation.students.training import fixed_latents

if TYPE_CHECKING:
    from evenlens.generation.classifiers import FaceClassifier

FIXED_SEED = 20_240_229  # of the latents that every epoch is judged by
SUBSETS, BATCH = 20, 128
LEAST_SPREAD = 0.1  # of a feature, by the root of all features' mean variance
MEANS = 8  # of an image: rows and columns of its areas, where there is no classifier


class Chooser:
    """Scores an epoch: KID to images that were held out, and how far the made attributes are from their target.

    The score is KID + variation_weight * total variation; the lowest is kept. Features are brought to the held-out
    images' mean 0 and variance 1, so that the two can be added up; one that hardly varies there, such as one of a dead
    unit, is divided by a tenth of the usual spread, as it would outweigh all others. Without a classifier, or with one
    that gives no features, these are the mean colours of 8 x 8 areas; without one there is no second part.

    Args:
        reference: (M, size, size, 3) uint8, held-out images.
        classifier: whose features are compared, and who says what an image shows.
        target: wanted shares (K,) by attribute.
        weight: of the total variation, mean over attributes.
        count: images that are made.
        device: where.
        shares: (G,) how often a generator of G labels is asked for each; None for equally often.

    Raises:
        UserError: features that are not finite.
    """

    def __init__(
        self,
        reference: np.ndarray,
        classifier: FaceClassifier | None,
        target: Mapping[str, Tensor],
        weight: float,
        count: int,
        device: torch.device,
        shares: np.ndarray | None = None,
    ) -> None:
        self.shares = shares
        self._extractor = classifier if classifier is not None and classifier.has_features else None
        self.classifier, self.target, self.weight, self.count, self.device = classifier, target, weight, count, device
        pixels = torch.from_numpy(reference).permute(0, 3, 1, 2)
        real = [self._seen(part.to(device).float() / 255)[0] for part in pixels.split(BATCH)]
        values = torch.cat(real).double().cpu().numpy()
        spread = values.std(0)
        usual = float(np.sqrt(np.square(spread).mean()))
        self._mean, self._spread = values.mean(0), spread.clip(max(LEAST_SPREAD * usual, 1e-6))
        self._reference = self._scaled(values)

    @property
    def extractor(self) -> str:
        """Say what made the features."""
        return self._extractor.title if self._extractor else f"mean colours of {MEANS} x {MEANS} areas"

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return (values - self._mean) / self._spread

    @torch.no_grad()
    def _seen(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Give features (B, F) of images in [0, 1], and how many were given each class (K,) by attribute."""
        logits = self.classifier.logits(image) if self.classifier and self.target else {}
        counts = {name: one_hot(logits[name].argmax(1), logits[name].shape[1]).sum(0) for name in self.target}
        if self._extractor:
            return self._extractor.features(image), counts
        return adaptive_avg_pool2d(image, min(MEANS, image.shape[-1])).flatten(1), counts

    @torch.no_grad()
    def score(self, net: StudentNet) -> dict[str, float]:
        """Give `kid`, `variation` (total variation, in [0, 1]; not there without a classifier) and `score`."""
        latents, labels = fixed_latents(net, self.count, FIXED_SEED, self.shares)
        features, counts = [], []
        for rows in torch.arange(self.count).split(BATCH):
            label = None if labels is None else labels[rows].to(self.device)
            image = (net(latents[rows].to(self.device), label) + 1) / 2
            part, found = self._seen(image)
            features.append(part)
            counts.append(found)
        made = self._scaled(torch.cat(features).double().cpu().numpy())
        size = min(len(made), len(self._reference)) // 2
        kid, _ = kernel_distance(made, self._reference, SUBSETS, size)
        if not math.isfinite(kid):
            raise UserError(
                f"The features of {self.extractor} are not finite, so no epoch can be chosen: take another."
            )
        if not self.target:
            return {"kid": kid, "score": kid}
        apart = []
        for name, share in self.target.items():
            shares = torch.stack([found[name] for found in counts]).sum(0).cpu().numpy() / self.count
            apart.append(float(distances(shares, share.double().numpy())["total_variation"]))
        variation = float(np.mean(apart))
        return {"kid": kid, "variation": variation, "score": kid + self.weight * variation}
