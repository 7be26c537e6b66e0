"""The cheap rival of distillation: the untouched generator, asked for a group by the choice of its latents."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from torch import Tensor

from evenlens.errors import UserError
from evenlens.generation.generator import Generator
from evenlens.generation.latent_probe import LatentProbe

POOL = 1 << 16  # latents of the prior that are looked at
FEWEST = 100  # of a group's latents to choose from


class FairSampler(Generator):
    """A generator without labels that can be asked for a group, as other latents are put in the place of those given.

    For each group it keeps those of a pool of its own latents that are accepted with a probability in proportion to
    p(group | latent), which follow p(latent | group). A latent and a label are mapped to one of them, always the same.

    Args:
        teacher: takes no labels.
        probe: says p(group | latent).
        seed: of the pool.

    Raises:
        UserError: a generator that takes labels, a probe for other latents, or a group that is too rare.

    Source: as `fair_latents.draw_latents`.
    """

    def __init__(self, teacher: Generator, probe: LatentProbe, seed: int = 0) -> None:
        if teacher.labels:
            raise UserError(f"{teacher.title} is asked for its {teacher.attribute} already: no latents need be chosen.")
        super().__init__(
            title=f"{teacher.title}, fair latents", latent_size=teacher.latent_size, size=teacher.size,
            fingerprint=_fingerprint(teacher, probe, seed), attribute=" and ".join(probe.attributes),
            labels=probe.groups, levels=_levels(probe),
            num_parameters=teacher.num_parameters, num_bytes=teacher.num_bytes,
            settings={**teacher.settings, "latents": "chosen by group", "seed": seed}, device=teacher.device,
        )  # fmt: skip
        self._teacher = teacher
        self._pool = teacher.latents(POOL, seed)
        probability = probe.probability(self._pool).numpy()
        chance = np.random.default_rng(seed).random(probability.shape)
        self._accepted = [np.flatnonzero(each) for each in (chance < probability / probability.max(axis=0)).T]
        for name, rows in zip(self.labels, self._accepted, strict=True):
            if len(rows) < FEWEST:
                raise UserError(
                    f"Only {len(rows)} of {POOL:,} latents of {teacher.title} are accepted for '{name}', and {FEWEST} "
                    "are needed: it hardly ever makes that group."
                )

    def latents(self, count: int, seed: int) -> Tensor:
        """Give the generator's own latents (count, D)."""
        return self._teacher.latents(count, seed)

    def draw(self, latent: Tensor, label: Tensor | None) -> Tensor:
        """Map latents (B, D) and labels (B,) to images (B, 3, size, size) of chosen latents."""
        if label is None:
            raise ValueError("the latents depend on the label")
        bits = np.ascontiguousarray(latent.cpu().numpy()).view(np.uint32).astype(np.uint64)
        factors = np.random.default_rng(1).integers(1 << 62, size=bits.shape[1], dtype=np.uint64) | np.uint64(1)
        number = (bits * factors).sum(axis=1) >> np.uint64(20)  # a hash: its high digits depend on all
        rows = [
            self._accepted[k][n % len(self._accepted[k])] for n, k in zip(number.tolist(), label.tolist(), strict=True)
        ]
        return self._teacher.draw(self._pool[rows].to(self.device), None)


def _levels(probe: LatentProbe) -> list[dict[str, str]]:
    """Give the class of each attribute, of each group; a group of several attributes has its classes joined by ", "."""
    if len(probe.attributes) < 2:
        return []
    return [dict(zip(probe.attributes, name.split(", "), strict=True)) for name in probe.groups]


def _fingerprint(teacher: Generator, probe: LatentProbe, seed: int) -> str:
    about = [teacher.fingerprint, teacher.settings, probe.groups, seed, POOL]
    content = hashlib.blake2b(json.dumps(about, default=str).encode(), digest_size=8)
    for value in probe.net.state_dict().values():
        content.update(value.cpu().numpy().tobytes())
    return content.hexdigest()
