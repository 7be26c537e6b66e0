"""What pruners share: a trained network, rounds of pruning on a schedule, and an objective to fine-tune for."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor

from evenlens.config import RunConfig
from evenlens.data.dataset import Batch, FairDataset, Task
from evenlens.errors import UserError, unknown
from evenlens.method import Log, Method, Needs, Range, drop_teachers
from evenlens.methods._options import at_least
from evenlens.nets import Classifier
from evenlens.pruning import channels, masks, objectives, schedules, scores, selection
from evenlens.pruning.layers import keep_counts, prunable

SCHEDULES = ("one_shot", "geometric", "cubic")
STRUCTURES = {"weights": 0.9, "channels": 0.5, "2:4": 0.5}
STARTS = ("dense", "fresh")
SCORED_BATCH = 32  # images of a batch that weights are scored on: as many of every group, so that none is scored apart

Tensors = dict[str, Tensor]


class Pruner(Method):
    """Remove the weights, or channels, that score lowest; fine-tune what is left.

    How weights are scored is each method's own; those that have `together` rank the weights of all layers as one, the
    others each layer by itself, and channels always so, as else some layers are emptied. The rest is composed: in how
    many rounds, spread evenly over the first part of the training, the sparsity rises; what is removed; and what the
    network is fine-tuned for. Nothing is offered before the sparsity is reached, and what was removed stays away.

    Args:
        task: what is predicted, for whom.
        config: the run's settings; `train` is how long pruning and fine-tuning take together.
        dense: the trained network that is made smaller. What it deploys beside its network stays: heads, thresholds.
        sparsity: share of the weights, or of the channels, that is removed, above 0 and below 1; 0 means 0.9 of the
            weights, 0.5 of the channels, and 0.5 in 2:4, which knows nothing else.
        structure: "weights" one by one, which make no file smaller and nothing faster unless what runs them knows how
            to leave zeros out; whole "channels", which do as soon as the network is exported; or "2:4", two of each
            four weights along the input, for GPUs that compute these faster.
        schedule: "one_shot"; "geometric", each round keeps `keep_rate` of what is left; or "cubic", fast at first.
        keep_rate: of the geometric schedule, above 0 and below 1.
        rounds: of the cubic schedule, at least 1.
        pruning_share: of the training in which the rounds take place, from 0 to below 1.
        start: prune the "dense" network, or a "fresh" one as it is before training.
        keep_dense: layers that are left alone: names as in the network, or "first" and "last".
        minimum: weights, or channels, that are left of each layer at least; 0 means 1 weight, or 8 channels.
        scored_images: of each group, or class, on which weights are scored.
        objective: what the network is fine-tuned for: "naive" cross-entropy, "equalised_loss", "ceag" (no group's
            accuracy falls by more than `tolerance` beyond the fall over all), or "performance_weighted".
        tolerance: of "ceag", at least 0, as a share of images.
        dual_learning_rate: of the constraints' multipliers, above 0.
        buffer: images of each group from which its accuracy, or loss, is estimated while training; 0, for
            "equalised_loss" alone, takes the batch.
        two_sided: whether "ceag" bounds by how much a group's accuracy may fall less than over all, too.
        constrained: "intersectional", each crossing of the sensitive columns is held to, or "marginal", each value of
            each column.
        constrain_while_pruning: whether the objective counts from the start, not only once the sparsity is reached.
    """

    stage: ClassVar[str] = "compress"
    needs_group: tuple[str, ...] = ()
    claims: ClassVar[str] = ""
    requires: ClassVar[dict[str, Needs]] = {"dense": Needs("erm")}
    search: ClassVar[dict[str, Range]] = {"sparsity": Range(0.5, 0.99)}
    together: ClassVar[bool] = False
    rounds_done: Tensor

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        dense: Method,
        *,
        sparsity: float = 0.0,
        structure: str = "weights",
        schedule: str = "one_shot",
        keep_rate: float = 0.9,
        rounds: int = 16,
        pruning_share: float = 0.25,
        start: str = "dense",
        keep_dense: tuple[str, ...] = (),
        minimum: int = 0,
        scored_images: int = 256,
        objective: str = "naive",
        tolerance: float = 0.01,
        dual_learning_rate: float = 1e-3,
        buffer: int = 40,
        two_sided: bool = False,
        constrained: str = "intersectional",
        constrain_while_pruning: bool = False,
    ) -> None:
        if start not in STARTS:
            raise unknown(f"start of {config.method}", start, STARTS)
        if not 0 <= pruning_share < 1:
            raise UserError(f"{config.method}: pruning_share={pruning_share:g} must be at least 0 and below 1.")
        at_least(0, config.method, minimum=minimum)
        at_least(1, config.method, scored_images=scored_images)
        super().__init__(task, config)
        if dense.task.class_names != task.class_names:
            raise UserError(
                f"{config.method}: the dense run predicts {', '.join(dense.task.class_names)}, and this one is to "
                f"predict {', '.join(task.class_names)}: name a dense run with these classes, in this order."
            )
        self.dense = dense
        self.model = deployed_copy(dense)
        fresh, self.net = self.net, self.model.net
        if start == "fresh":
            put_back(self.net, fresh.state_dict(), config.method)
        self.sparsity, self.structure = checked_sparsity(sparsity, structure, config.method), structure
        self.minimum = minimum or (8 if structure == "channels" else 1)
        self.sparsities = self.planned(schedule, keep_rate, rounds)
        self.pruning_share, self.scored_images = pruning_share, scored_images
        self.while_pruning = constrain_while_pruning
        self.names = prunable(self.net, keep_dense)
        self.channels = self.find_channels() if structure == "channels" else []
        masks.attach(self.net, channels.to_masks(self.channels, {}) if structure == "channels" else self.names)
        bound = {"tolerance": tolerance, "two_sided": two_sided, "constrained": constrained, "buffer": buffer}
        self.objective = objectives.make(objective, task, dual_learning_rate=dual_learning_rate, **bound)
        if self.objective.needs_group:
            self.needs_group = ("training",)
        self.register_buffer("rounds_done", torch.zeros((), dtype=torch.long))
        self.done = 0  # the same, as a number of Python, which no step waits for the device to read

    def planned(self, schedule: str, keep_rate: float, rounds: int) -> list[float]:
        """Give the sparsity after each round."""
        if schedule not in SCHEDULES:
            raise unknown(f"schedule of {self.config.method}", schedule, SCHEDULES)
        if schedule == "one_shot" or self.structure == "2:4":
            return schedules.one_shot(self.sparsity)
        if schedule == "geometric":
            return schedules.geometric(self.sparsity, keep_rate)
        return schedules.cubic(self.sparsity, rounds)

    def find_channels(self) -> list[channels.ChannelGroup]:
        """Find which channels have to go together; those of a layer that is left alone are not among them."""
        left_alone = set(prunable(self.net)) - set(self.names)
        return [
            group
            for group in channels.find(self.net, self.task.image_size)
            if not any(member.makes and member.tensor in left_alone for member in group.members)
        ]

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to the logits (B, C) that the smaller model deploys."""
        return self.model(image)

    def predict(self, batch: Batch) -> Tensor:
        """Give the logits of a batch as the dense model does."""
        return self.model.predict(batch)

    @property
    def complete(self) -> bool:
        """Whether the sparsity is reached."""
        return int(self.rounds_done) == len(self.sparsities)

    # ---- when it is pruned

    def prepare(self, train: FairDataset, tune: FairDataset) -> None:
        """Make the optimiser, and let the objective look at what the dense model does."""
        self.add_optimiser(self.net.parameters())
        self.part = train
        self.objective.start(self.dense, train)

    def train_epoch(self, train: FairDataset) -> Log:
        """Train an epoch, with the rounds of pruning that fall into it; log what the objective sees."""
        log = super().train_epoch(train)
        log["sparsity"] = self.sparsity_now()
        return {**log, **{name: value.item() for name, value in self.objective.log().items()}}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Prune if it is time for a round; take a step for the objective."""
        span = self.pruning_share * self.config.train.epochs
        while self.done < len(self.sparsities) and self.position >= span * self.done / len(self.sparsities):
            self.prune(self.sparsities[self.done])
            self.done += 1
            self.rounds_done += 1
        self.objective.active = self.while_pruning or self.done == len(self.sparsities)
        return super().step(batch)

    def load_state_dict(self, *state: Any, **options: Any) -> Any:
        """Take a state, and how many rounds it has had."""
        loaded = super().load_state_dict(*state, **options)
        self.done = int(self.rounds_done)
        return loaded

    def loss(self, batch: Batch) -> Tensor:
        """Give the objective's loss."""
        return self.objective.loss(self(batch.image), batch)

    # ---- what is pruned

    def prune(self, sparsity: float) -> None:
        """Remove what scores lowest, up to a sparsity."""
        training = self.training
        self.eval()  # no running statistics move while weights are scored
        kept = self.kept(self.score(), sparsity)
        self.train(training)
        masks.apply(self.net, kept)

    def kept(self, score: Tensors, sparsity: float) -> masks.Masks:
        """Give the masks at a sparsity, from the scores of single weights."""
        if self.structure == "channels":
            units = channels.channel_scores(self.channels, score)
            there = channels.alive(self.channels, masks.masks_of(self.net))
            keep = channels.keep(self.channels, sparsity, self.minimum)
            return channels.to_masks(self.channels, self.select(units, there, keep))
        alive = self.alive()
        if self.structure == "2:4":
            return selection.two_of_four(score, alive)
        sizes = {name: mask.numel() for name, mask in alive.items()}
        return self.select(score, alive, keep_counts(sizes, sparsity, self.minimum))

    def select(self, score: Tensors, alive: masks.Masks, keep: dict[str, int]) -> masks.Masks:
        """Choose what stays of each layer; here: what scores highest."""
        if self.together and self.structure == "weights":
            return selection.across_layers(score, alive, sum(keep.values()), self.minimum)
        return selection.per_layer(score, alive, keep)

    def score(self) -> Tensors:
        """Score each weight by its name: more is to be kept."""
        raise NotImplementedError

    def leaves(self) -> Tensors:
        """Give the trainable tensor of each prunable weight."""
        return dict(masks.leaves(self.net, self.names))

    def alive(self) -> masks.Masks:
        """Give which of the prunable weights are there."""
        found = masks.masks_of(self.net)
        all_of = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in self.leaves().items()}
        return {name: found.get(name, mask) for name, mask in all_of.items()}

    def sparsity_now(self) -> float:
        """Give the share that is removed of all that has a mask."""
        return masks.sparsity(self.net)

    # ---- what became of it

    def review(self, train: FairDataset) -> dict[str, Any]:
        """Give what each layer lost for whom, and how right both networks are on the training images of each group.

        The importance that is kept of a group is that of the dense network's weights, by the squared change of the
        group's loss to first order.
        """
        of_dense = self.importance_kept(train)
        layers = [
            {"name": name, "weights": mask.numel(), "kept": int(mask.sum()), "importance_kept": of_dense[name]}
            for name, mask in self.alive().items()
        ]
        right = {"dense": right_by_group(self.dense, train), "pruned": right_by_group(self, train)}
        number = torch.bincount(train.group.cpu(), minlength=self.task.num_groups).tolist()
        self.note_broken(number, right)
        return {
            "sparsity": self.sparsity_now(),
            "structure": self.structure,
            "layers": layers,
            "train": {"images": number, "right": right},
            "objective": self.objective.review(),
        }

    def note_broken(self, number: list[int], right: dict[str, list[int]]) -> None:
        """Note where a bound is not kept on the training images, on which it was worked towards."""
        found = self.objective.review()
        if found.get("least_weight", 1.0) < 0:
            self.notes.append(
                f"The multipliers grew so large that an image's loss counted {found['least_weight']:.2f} times, and "
                "was driven up: a smaller dual_learning_rate, or a larger tolerance, avoids that."
            )
        lost = [dense - pruned for dense, pruned in zip(right["dense"], right["pruned"], strict=True)]
        overall = sum(lost) / sum(number)
        gaps = {
            name: each / n - overall for name, each, n in zip(self.task.group_names, lost, number, strict=True) if n
        }
        worst = max(gaps, key=lambda name: gaps[name])
        bounded = found.get("groups") == list(gaps)  # and not the values of each column, of which less is known here
        if bounded and gaps[worst] > found.get("tolerance", math.inf):
            self.notes.append(
                f"tolerance={found['tolerance']:g} is not reached even on training images: {worst} loses "
                f"{gaps[worst]:.3f} more accuracy than all together. More epochs after pruning, a larger "
                "dual_learning_rate, a lower sparsity or a larger tolerance may help."
            )

    def importance_kept(self, train: FairDataset) -> dict[str, list[float | None]]:
        """Give for each prunable weight which share of each group's importance in the dense network is kept."""
        dense = deployed_copy(self.dense).eval()
        masks.bake(dense.net)
        batches = scores.group_batches(train, min(self.scored_images, 4 * SCORED_BATCH), SCORED_BATCH)
        alive = self.alive()
        leaves = dict(masks.leaves(dense.net, alive))
        shares = selection.share_of(scores.group_taylor(dense, leaves, batches, self.task.num_groups), alive)
        return {name: [None if x != x else x for x in share.tolist()] for name, share in shares.items()}


def checked_sparsity(sparsity: float, structure: str, method: str) -> float:
    """Give a sparsity, or for 0 the structure's own.

    Raises:
        UserError: an unknown structure, or a sparsity that it does not have.
    """
    if structure not in STRUCTURES:
        raise unknown(f"structure of {method}", structure, STRUCTURES)
    sparsity = sparsity or STRUCTURES[structure]
    if not 0 < sparsity < 1 or (structure == "2:4" and sparsity != 0.5):
        raise UserError(
            f"{method}: sparsity={sparsity:g} is not allowed: it is the share that is removed, above 0 and below 1, "
            "and of structure=2:4 always 0.5."
        )
    return sparsity


def deployed_copy(method: Method) -> Method:
    """Copy a trained method, to be trained on: its network, and all else that predicting takes, frozen as it is."""
    copy = deepcopy(method)
    drop_teachers(copy)
    copy.requires_grad_(False)
    copy.net.requires_grad_(True)
    return copy


@torch.no_grad()
def put_back(net: Classifier, state: Tensors, method: str) -> None:
    """Give a network these weights and running statistics; what is removed stays removed.

    Raises:
        UserError: they are of different shapes.
    """
    names = [name for name, _ in masks.baked(net).named_parameters()]
    here = {**masks.leaves(net, names), **{name: value for name, value in net.named_buffers() if name in state}}
    if {k: v.shape for k, v in here.items()} != {k: v.shape for k, v in state.items()}:
        raise UserError(
            f"{method}: weights as before training can only be given to a network that this run's settings make, and "
            "the dense run's has other layers or outputs: choose start=dense or rewind=dense, or its net.backbone."
        )
    for name, value in here.items():
        value.copy_(state[name])
    masks.apply(net, masks.masks_of(net))


@torch.no_grad()
def right_by_group(method: Method, part: FairDataset) -> list[int]:
    """Count a method's right predictions of each group of a part, not augmented."""
    training = method.training
    method.eval()
    right = torch.zeros(method.task.num_groups, dtype=torch.long, device=part.group.device)
    for batch in part.in_order():
        hit = method.predict(batch).argmax(1) == batch.label
        right += torch.bincount(batch.group, weights=hit.double(), minlength=len(right)).long()
    method.train(training)
    return right.tolist()
