"""The training of a generator: against a teacher's images of the same latents, against images alone, or both.

One loop serves a student, a student of a group that is asked for, and a teacher of one's own: they differ in what there
is to learn from, and in the weights of the terms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from evenlens.errors import UserError
from evenlens.generation.samples import asked_labels, even_labels
from evenlens.generation.students import terms
from evenlens.generation.students.nets import Discriminator, StudentNet
from evenlens.generation.students.settings import CLASSIFYING, TERMS, Settings

if TYPE_CHECKING:
    from evenlens.generation.classifiers import FaceClassifier

RECALIBRATION = 20  # batches from which the averaged network's normalisation is measured
WARM = 10  # steps after which the moving average is slow
BETAS = (0.0, 0.9)


@dataclass(frozen=True)
class Material:
    """What is learned from.

    Attributes:
        pixels: (N, size, size, 3) uint8.
        latents: (N, D) that the teacher made each from; None where there are images alone.
        group: (N,) int64, what each shows, for a generator that is asked for it; None for one that is not.
        groups: what each group is, by attribute: names of its levels.
        shares: (G,) how often each group is to be made, summing to 1; None for equally often.
        image: (N,) int64, which image each row is of, where one may be there several times; None where each is another.
    """

    pixels: np.ndarray
    latents: Tensor | None = None
    group: Tensor | None = None
    groups: tuple[Mapping[str, str], ...] = ()
    shares: np.ndarray | None = None
    image: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: np.ndarray) -> Material:
        latents, group = (None if part is None else part[torch.from_numpy(rows)] for part in (self.latents, self.group))
        image = None if self.image is None else self.image[rows]
        return Material(self.pixels[rows], latents, group, self.groups, self.shares, image)


class Training:
    """Two networks, their optimisers and the moving average of the generator's weights.

    Differs from the code of fair GAN distillation, at any epoch of which some line fails: examples are shuffled, the
    discriminator is frozen while the generator learns, what is kept is an average of the weights with a normalisation
    of its own and is drawn in evaluation mode, and the diversity loss has a gradient and sees images of fresh latents,
    which is what will be drawn.

    Args:
        material: what is learned from, on the CPU.
        settings: how.
        device: where.
        classifier: for the terms that look through one.
        target: wanted shares (K,) by attribute, for `diversity`.

    Raises:
        UserError: there is too little, or a term lacks what it needs.
    """

    def __init__(
        self,
        material: Material,
        settings: Settings,
        device: torch.device,
        classifier: FaceClassifier | None = None,
        target: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.settings, self.device, self.classifier = settings, device, classifier
        self._check(material, target)
        self.pixels = torch.from_numpy(material.pixels).to(device)
        self.latents = material.latents if material.latents is None else material.latents.to(device)
        self.group = material.group if material.group is None else material.group.to(device)
        self.shares = None if material.shares is None else torch.from_numpy(material.shares)
        self.target = {name: share.to(device, torch.float32) for name, share in (target or {}).items()}
        self.levels = self._levels(material)
        paired = material.latents is not None
        self.terms = [
            term for term in settings.used(*TERMS) if paired or term not in ("pixel", "features", "perceptual")
        ]
        self.judging = any(term in self.terms for term in ("adversarial", "features"))
        torch.manual_seed(settings.seed)  # of the weights' first values alone
        num_labels = len(material.groups) if material.group is not None else 0
        size = material.pixels.shape[1]
        latent_size = material.latents.shape[1] if material.latents is not None else settings.latent_size
        net = StudentNet(size=size, latent_size=latent_size, channels=settings.channels, num_labels=num_labels)
        judge = Discriminator(size=size, channels=settings.discriminator_channels, num_labels=num_labels)
        # channels last: 1.7 times as fast on processors
        self.net = net.to(device).to(memory_format=torch.channels_last)
        self.judge = judge.to(device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizers = [self._adam(self.net), self._adam(self.judge)]
        self.epoch, self.step = 0, 0

    def _check(self, material: Material, target: Mapping[str, Tensor] | None) -> None:
        settings, paired = self.settings, material.latents is not None
        if len(material) < settings.batch_size:
            raise UserError(
                f"There are {len(material):,} images to learn from, beside those held out, fewer than "
                f"batch_size={settings.batch_size}: make more, or set it lower."
            )
        lacking = settings.used(*CLASSIFYING)
        if self.classifier is None and lacking:
            raise UserError(
                f"{lacking[0]} looks through a classifier: name one with --classifier, or set {lacking[0]}=0."
            )
        if self.classifier is not None and lacking and not self.classifier.differentiable:
            raise UserError(
                f"{self.classifier.title} gives no gradient, which {lacking[0]} needs: name a run of evenlens, a "
                "checkpoint or a TorchScript file."
            )
        if settings.used("diversity") and not target:
            raise UserError("diversity has no attribute to balance here: distil with --attribute, or set diversity=0.")
        if settings.used("group") and material.group is None:
            raise UserError(
                "group is for a student that is asked for a group: distil with --conditional, or set group=0."
            )
        if not paired and not settings.used("adversarial"):
            raise UserError(
                "Without a teacher's images, only the adversarial term teaches anything: set adversarial=1."
            )

    def _levels(self, material: Material) -> dict[str, Tensor]:
        """Give, by attribute, the class (G,) that each group has for the classifier."""
        if not self.settings.used("group") or self.classifier is None:
            return {}
        found: dict[str, Tensor] = {}
        for name in material.groups[0]:
            classes = self.classifier.attributes.get(name)
            strange = [each[name] for each in material.groups if classes is None or each[name] not in classes]
            if classes is None or strange:
                known = "; ".join(f"{key}: {', '.join(names)}" for key, names in self.classifier.attributes.items())
                raise UserError(
                    f"{self.classifier.title} does not know {name} '{strange[0]}', which the group term asks for; it "
                    f"knows {known}."
                )
            found[name] = torch.tensor([classes.index(each[name]) for each in material.groups], device=self.device)
        return found

    def _adam(self, net: nn.Module) -> torch.optim.Adam:
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        return torch.optim.Adam(net.parameters(), rate, BETAS, weight_decay=decay)

    @property
    def num_labels(self) -> int:
        """How many groups can be asked for; 0 for none."""
        return self.net.num_labels

    @property
    def steps_an_epoch(self) -> int:
        """Steps between two scorings."""
        if self.settings.steps:
            return math.ceil(self.settings.steps / self.settings.epochs)
        return max(1, len(self.pixels) // self.settings.batch_size)

    # ---- an epoch

    def train_epoch(self) -> dict[str, float]:
        """Train for an epoch; give the mean of each term, of the discriminator's loss and of what it says, by name."""
        random = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.epoch)
        progress = self.epoch / max(self.settings.epochs - 1, 1)
        weights = {term: self.settings.schedule(term).at(progress) for term in self.terms}
        total, num = self.steps_an_epoch * self.settings.epochs, self.steps_an_epoch
        sums: dict[str, Tensor] = {}
        for rows in self._batches(num, random):
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = (
                    self.settings.learning_rate * (1 + math.cos(math.pi * self.step / total)) / 2
                )
            for name, value in self._step(rows, weights, random).items():
                sums[name] = sums.get(name, 0) + value.detach().float()
            self.step += 1
            self._follow()
        self.epoch += 1
        self._recalibrate()
        found = {name: float(value) / num for name, value in sums.items()}
        if not all(math.isfinite(value) for value in found.values()):
            raise UserError(
                f"The losses are no numbers any more in epoch {self.epoch}: set a lower learning_rate, clip=1, or "
                "smaller weights."
            )
        return found

    def _batches(self, num: int, random: torch.Generator) -> Any:
        """Give `num` batches of rows, in random order, beginning anew when all were seen."""
        size = self.settings.batch_size
        order = torch.randperm(len(self.pixels), generator=random)
        while len(order) < num * size:
            order = torch.cat([order, torch.randperm(len(self.pixels), generator=random)])
        return order[: num * size].to(self.device).split(size)

    def _step(self, rows: Tensor, weights: Mapping[str, float], random: torch.Generator) -> dict[str, Tensor]:
        settings = self.settings
        real = self.pixels[rows].permute(0, 3, 1, 2).float().div_(127.5).sub_(1)  # channels last, as they lie
        label = None if self.group is None else self.group[rows]
        pairs = 0 if self.latents is None else len(rows)
        latent, wanted = self._latents(rows, label, pairs, random)
        with self._autocast():
            made = self.net(latent, wanted)
        made = made.float()
        found: dict[str, Tensor] = {}
        layers: list[Tensor] = []
        if self.judging:
            found, layers = self._judge_step(real, label, made.detach(), wanted)
        found |= self._terms(made, wanted, real, layers, pairs, weights)
        loss = sum((weight * found[term] for term, weight in weights.items()), torch.zeros((), device=self.device))
        self.optimizers[0].zero_grad(set_to_none=True)
        loss.backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), settings.clip)
        self.optimizers[0].step()
        return found

    def _latents(
        self, rows: Tensor, label: Tensor | None, pairs: int, random: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Give the latents of the rows, and after them fresh ones, with the groups that they are asked for."""
        num = len(rows)
        needs_fresh = not pairs or self.settings.fresh or any(term in self.terms for term in ("diversity", "group"))
        parts, labels = [], []
        if pairs and self.latents is not None:
            parts.append(self.latents[rows])
            labels.append(label)
        if needs_fresh:
            parts.append(torch.randn(num, self.net.latent_size, generator=random).to(self.device, non_blocking=True))
            labels.append(self._asked(num, random).to(self.device, non_blocking=True))
        whole = torch.cat([each for each in labels if each is not None]) if self.num_labels else None
        return torch.cat(parts), whole

    def _asked(self, num: int, random: torch.Generator) -> Tensor:
        """Draw the groups (num,) that fresh images are asked for, by the wanted shares."""
        if self.shares is None:
            return torch.randint(max(self.num_labels, 1), (num,), generator=random)
        return torch.multinomial(self.shares, num, replacement=True, generator=random)

    def _autocast(self) -> torch.autocast:
        kind = self.device.type
        low = self.settings.precision == "bf16" or (self.settings.precision == "auto" and kind == "cuda")
        return torch.autocast(kind, torch.bfloat16, enabled=low)

    def _judged(self, made: Tensor, pairs: int) -> slice:
        """Say which made images the discriminator sees: those of pairs, and fresh ones if asked or alone."""
        return slice(None) if self.settings.fresh or not pairs else slice(0, pairs)

    def _judge_step(
        self, real: Tensor, label: Tensor | None, made: Tensor, wanted: Tensor | None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Teach the discriminator; give its losses, and its layers' outputs for real images from before the step."""
        seen = self._judged(made, len(real) if self.latents is not None else 0)
        penalised = self.settings.gradient_penalty > 0
        self.judge.requires_grad_(True)
        with self._autocast():
            real = real.requires_grad_(penalised)
            says_real, layers = self.judge(real, label)
            says_made, _ = self.judge(made[seen], None if wanted is None else wanted[seen])
        says_real, says_made = says_real.float(), says_made.float()
        loss = terms.discriminating(self.settings.kind, says_real, says_made)
        found = {"discriminator": loss, "real": says_real.mean(), "made": says_made.mean()}
        if penalised:
            found["gradient_penalty"] = terms.gradient_penalty(says_real, real)
            loss = loss + self.settings.gradient_penalty * found["gradient_penalty"]
        self.optimizers[1].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[1].step()
        self.judge.requires_grad_(False)  # what the generator does to it below is not to teach it
        return found, [layer.detach() for layer in layers]

    def _terms(
        self, made: Tensor, wanted: Tensor | None, real: Tensor, layers: list[Tensor], pairs: int,
        weights: Mapping[str, float],
    ) -> dict[str, Tensor]:  # fmt: skip
        """Give the terms that the generator learns by."""
        found: dict[str, Tensor] = {}
        if self.judging:
            seen = self._judged(made, pairs)
            with self._autocast():
                logit, own = self.judge(made[seen], None if wanted is None else wanted[seen])
            if "adversarial" in weights:
                found["adversarial"] = terms.adversarial(self.settings.kind, logit.float())
            if "features" in weights:
                now = [layer[:pairs].float() for layer in own]
                found["features"] = terms.features(now, [each.float() for each in layers])
        if "pixel" in weights:
            found["pixel"] = terms.pixel(made[:pairs], real.detach())
        if self.classifier is None:
            return found
        if "perceptual" in weights:
            with torch.no_grad():
                like = self.classifier.features((real.detach() + 1) / 2)
            found["perceptual"] = (self.classifier.features((made[:pairs] + 1) / 2) - like).abs().mean()
        if "diversity" in weights or "group" in weights:
            logits = self.classifier.logits((made[pairs:] + 1) / 2)
            if "diversity" in weights:
                some = {name: logits[name] for name in self.target}
                found["diversity"] = terms.diversity(
                    some, self.target, self.settings.temperature, self.settings.entropy
                )
            if "group" in weights and wanted is not None:
                found["group"] = terms.group(
                    logits, {name: level[wanted[pairs:]] for name, level in self.levels.items()}
                )
        return found

    # ---- what is kept

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average of the weights a little."""
        decay = min(self.settings.average, (1 + self.step) / (WARM + self.step))
        kept: list[Tensor] = [*self.average.parameters()]
        now: list[Tensor] = [*self.net.parameters()]
        torch._foreach_lerp_(kept, now, 1 - decay)

    @torch.no_grad()
    def _recalibrate(self) -> None:
        """Measure the averaged network's normalisation, which no average of other networks' is.

        It is measured on what the network learned from. Measured on fresh latents alone, it would bring their shares of
        each group back to those of balanced pairs, and hide the bias that the student has.
        """
        norms = [module for module in self.average.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        random = torch.Generator().manual_seed(self.epoch)
        for rows in self._batches(RECALIBRATION, random):
            label = None if self.group is None else self.group[rows]
            self.average(*self._latents(rows, label, 0 if self.latents is None else len(rows), random))
        self.average.eval()

    def state(self) -> dict[str, Any]:
        """Give all that a killed training needs to go on."""
        return {
            "net": self.net.state_dict(), "judge": self.judge.state_dict(), "average": self.average.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers], "epoch": self.epoch, "step": self.step,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for name in ("net", "judge", "average"):
            getattr(self, name).load_state_dict(state[name])
        for optimizer, each in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(each)
        self.epoch, self.step = state["epoch"], state["step"]


def fixed_latents(
    net: StudentNet, count: int, seed: int, shares: np.ndarray | None = None
) -> tuple[Tensor, Tensor | None]:
    """Give latents (count, D) and, where the network takes labels, as many of each as shares (G,) say; on the CPU."""
    latents = torch.randn(count, net.latent_size, generator=torch.Generator().manual_seed(seed))
    if not net.num_labels:
        return latents, None
    return latents, even_labels(count, net.num_labels, seed) if shares is None else asked_labels(count, shares, seed)
