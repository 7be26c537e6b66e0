"""Latent probe: what tells from a latent, before the image is made, which group the image will be in."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from evenlens import engine
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.run import Watch, silent

FORMAT = "1"
KINDS = ("linear", "mlp")
HIDDEN, BATCH, STEPS, EVERY, PATIENCE = 64, 256, 2000, 50, 10
LEARNING_RATE, DECAY = 3e-3, 0.01
PARTS = (0.7, 0.15, 0.15)  # of the labelled latents: to fit, to stop and choose by, to judge by
FEWEST = 10  # labelled images of a group from which it can be learned
CLEAR = 2.0  # standard errors by which a probe must be better than the shares alone, to have learned something


class Judged(NamedTuple):
    """How well a probe tells the group from the latent, on labelled latents that it was not fitted or chosen by.

    Attributes:
        kind: one of `KINDS`: the one with the lower loss on the second part.
        num_fit: latents that it was fitted to.
        num_judged: latents that it is judged on.
        loss: mean log-loss in nats, at least 0.
        loss_of_shares: the same, when each latent is given the groups' shares.
        standard_error: of the difference of the two.
        accuracy: share of latents whose likeliest group is theirs.
        accuracy_of_shares: the same, when each is given the largest group.
    """

    kind: str
    num_fit: int
    num_judged: int
    loss: float
    loss_of_shares: float
    standard_error: float
    accuracy: float
    accuracy_of_shares: float

    @property
    def learned(self) -> bool:
        """Whether it is better than the shares alone, by more than chance explains."""
        return self.loss_of_shares - self.loss > CLEAR * self.standard_error


class _Net(nn.Module):
    """Latents (N, D) to logits (N, K); before it is fitted, these are the shares of the groups for every latent."""

    centre: Tensor
    scale: Tensor

    def __init__(self, kind: str, latent_size: int, num_groups: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(latent_size))
        self.register_buffer("scale", torch.ones(latent_size))
        last = nn.Linear(latent_size if kind == "linear" else HIDDEN, num_groups)
        nn.init.zeros_(last.weight)
        self.hidden = nn.Sequential() if kind == "linear" else nn.Sequential(nn.Linear(latent_size, HIDDEN), nn.GELU())
        self.last = last

    def forward(self, latent: Tensor) -> Tensor:
        return self.last(self.hidden((latent - self.centre) / self.scale))


@dataclass(frozen=True)
class LatentProbe:
    """What tells from a latent which group its image will be in.

    Attributes:
        groups: the K groups in words.
        attributes: what they are of.
        latent_size: numbers of a latent, D.
        judged: how well it does.
        net: (N, D) to logits (N, K).
    """

    groups: tuple[str, ...]
    attributes: tuple[str, ...]
    latent_size: int
    judged: Judged
    net: nn.Module = field(repr=False)

    @torch.inference_mode()
    def probability(self, latent: Tensor) -> Tensor:
        """Give the probability (N, K) of each group, float64, rows summing to 1, for latents (N, D).

        Raises:
            UserError: latents of another length.
        """
        if latent.ndim != 2 or latent.shape[1] != self.latent_size:
            raise UserError(
                f"The probe was fitted to latents of {self.latent_size} numbers, and was given {tuple(latent.shape)}: "
                "take those of the same generator."
            )
        return self.net(latent.float()).double().softmax(1)

    def save(self, path: Path | str) -> None:
        """Write it as .safetensors; what is there is replaced.

        Raises:
            UserError: another ending.
        """
        path = Path(path)
        check_probe_ending(path)
        about = {"groups": self.groups, "attributes": self.attributes, "latent_size": self.latent_size,
                 "judged": self.judged._asdict()}  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(save(self.net.state_dict(), metadata={"latent_probe": FORMAT, "about": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path | str) -> LatentProbe:
        """Read what `save` wrote. Nothing in the file is run.

        Raises:
            UserError: no such file, something else, or a damaged one.
        """
        if not Path(path).is_file():
            raise UserError(f"There is no probe {path}: write one with evenlens generate latents --probe {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            if metadata.get("latent_probe") != FORMAT:
                raise ValueError(f"it says no probe of format {FORMAT}")
            about = json.loads(metadata["about"])
            judged, size, groups = Judged(**about["judged"]), int(about["latent_size"]), tuple(about["groups"])
            net = _Net(judged.kind, size, len(groups))
            net.load_state_dict(state)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            why = " ".join(str(error).split())[:120]
            raise UserError(f"{path} is no probe of latents, or a damaged one ({why}): write it again.") from None
        return cls(groups, tuple(about["attributes"]), size, judged, net.eval().requires_grad_(False))


def check_probe_ending(path: Path) -> None:
    """Refuse a name that does not say how a probe is written."""
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path} ends in '{path.suffix}': a probe is written as .safetensors.")


def fit_probe(
    latents: np.ndarray,
    group: np.ndarray,
    groups: Sequence[str],
    attributes: Sequence[str] = (),
    seed: int = 0,
    watch: Watch = silent,
) -> LatentProbe:
    """Learn the probability of each group, given a latent.

    A linear softmax and a network with one hidden layer are fitted to 70 % of the latents by log-loss. Both start as
    the shares alone and stop where the log-loss on another 15 % is least, so one that finds nothing stays there; the
    better one on these is taken. It is judged on the last 15 %, which nothing was chosen by. If it has not learned
    more there than chance explains, the probe gives each latent the shares: what it says else would be chance.

    Args:
        latents: (N, D).
        group: (N,) in [0, K).
        groups: the K groups in words.
        attributes: what they are of.
        seed: of the parts, the weights and the batches.
        watch: told of progress.

    Raises:
        UserError: fewer than two groups, or a group with fewer than 10 latents.
    """
    counts = np.bincount(group, minlength=len(groups))
    few = int(counts.argmin())
    if len(groups) < 2 or counts[few] < FEWEST:
        what = "one group alone" if len(groups) < 2 else f"{counts[few]} labelled images of '{groups[few]}'"
        raise UserError(
            f"There is {what}: at least two groups of {FEWEST} images are needed to learn from; label more samples, or "
            "cross fewer attributes."
        )
    order = np.random.default_rng(seed).permutation(len(group))
    cuts = np.cumsum([int(part * len(group)) for part in PARTS[:2]])
    rows, truth = torch.from_numpy(latents.astype(np.float32)), torch.from_numpy(group.astype(np.int64))
    fit, tune, judge = ((rows[part], truth[part]) for part in map(torch.from_numpy, np.split(order, cuts)))
    shares = (torch.bincount(fit[1], minlength=len(groups)) + 1).double() / (len(fit[1]) + len(groups))
    fitted = []
    for number, kind in enumerate(KINDS):
        net, loss = _fit(kind, fit, tune, shares, seed, partial(watch, kind))
        fitted.append((loss, number, kind, net))
    _, _, kind, net = min(fitted, key=lambda one: one[:2])
    judged = _judge(kind, net, len(fit[1]), judge, shares)
    if not judged.learned:
        net = _net(kind, fit[0], shares, seed).eval().requires_grad_(False)
    return LatentProbe(tuple(groups), tuple(attributes), latents.shape[1], judged, net)


Rows = tuple[Tensor, Tensor]


def _fit(
    kind: str, fit: Rows, tune: Rows, shares: Tensor, seed: int, watch: Callable[[int, int], None]
) -> tuple[nn.Module, float]:
    """Fit one net; give it as it was when its log-loss on `tune` was least, and that loss."""
    latent, group = fit
    net = _net(kind, latent, shares, seed)
    optimiser = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=DECAY)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    random = torch.Generator().manual_seed(seed)
    best, state, since = _loss(net, tune), copy.deepcopy(net.state_dict()), 0
    for step in range(1, STEPS + 1):
        batch = torch.randint(len(group), (min(BATCH, len(group)),), generator=random)
        optimiser.zero_grad()
        functional.cross_entropy(net(latent[batch]), group[batch]).backward()
        optimiser.step()
        falling.step()
        if step % EVERY == 0:
            loss = _loss(net, tune)
            since += 1
            if loss < best:
                best, state, since = loss, copy.deepcopy(net.state_dict()), 0
            watch(step, STEPS)
            if since == PATIENCE:
                break
    watch(STEPS, STEPS)
    net.load_state_dict(state)
    return net.eval().requires_grad_(False), best


def _net(kind: str, latent: Tensor, shares: Tensor, seed: int) -> _Net:
    """Make a net that gives each latent the shares, and knows the scale of latents (N, D)."""
    with engine.fork_rng(latent.device):
        torch.manual_seed(seed)
        net = _Net(kind, latent.shape[1], len(shares))
    scale, centre = torch.std_mean(latent, dim=0)
    start = {"centre": centre, "scale": torch.where(scale > 0, scale, 1.0), "last.bias": shares.log()}
    net.load_state_dict(start, strict=False)
    return net


@torch.inference_mode()
def _loss(net: nn.Module, rows: Rows) -> float:
    return float(functional.cross_entropy(net(rows[0]), rows[1]))


@torch.inference_mode()
def _judge(kind: str, net: nn.Module, num_fit: int, rows: Rows, shares: Tensor) -> Judged:
    """Compare a net's log-loss with that of the shares, latent by latent."""
    logits, group = net(rows[0]).double(), rows[1]
    mine = functional.cross_entropy(logits, group, reduction="none")
    alone = -shares.log()[group]
    gain = alone - mine
    error = float(gain.std()) / math.sqrt(len(group))
    return Judged(
        kind, num_fit, len(group), float(mine.mean()), float(alone.mean()), error,
        float((logits.argmax(1) == group).double().mean()), float((group == shares.argmax()).double().mean()),
    )  # fmt: skip
