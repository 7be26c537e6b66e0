"""Weights that another program trained, put into a network of ours."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from evenlens.errors import UserError, unknown
from evenlens.nets import Classifier
from evenlens.weights import Checkpoint

COUNTER = "num_batches_tracked"  # of batch norm; older files lack it, and nothing at prediction looks at it
HEADS = ("take", "new")
# Networks whose layers torchvision and timm name differently, in the same order: each compared in value by a test.
BY_ORDER = ("mobilenetv2_100", "efficientnet_b0")
# The last layer of the published network for seven races: their rows, then those of gender, then those of age.
FACE_ROWS = (
    *("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern"),
    *("Male", "Female"),
    *("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+"),
)
OTHERWISE = {"more than 70": "70+"}  # what the labels of the same faces call it


# ---- the network


def put(
    checkpoint: Checkpoint, net: Classifier, class_names: Sequence[str], classes: Sequence[str] = (), head: str = "take"
) -> list[str]:
    """Give a network the weights of a checkpoint.

    Args:
        checkpoint: as `read` gave it.
        net: changed in place; it stays as it is where something does not fit.
        class_names: what is to be predicted, in order.
        classes: what the rows of the checkpoint's last layer stand for, in order; default: what the file says, or
            the known names of the 18 rows of the published network for faces.
        head: "take" the last layer, or keep the "new" one.

    Returns:
        what a reader of the result has to know, one sentence each.

    Raises:
        UserError: an entry that does not fit, or a class that the last layer does not know.
    """
    if head not in HEADS:
        raise unknown("kind of head", head, HEADS)
    notes: list[str] = []
    backbone, last = _matched(checkpoint, net, notes)
    if head == "take":
        if "weight" not in last:
            raise UserError(f"{checkpoint.path} has no last layer: set head=new, which keeps a fresh one.")
        weight, bias = _rows(checkpoint, net, last, list(class_names), list(classes), notes)
    net.backbone.load_state_dict(backbone)
    if head == "take":
        with torch.no_grad():
            net.head.weight.copy_(weight)
            net.head.bias.copy_(bias)
    else:
        notes.append("The last layer is a fresh one that knows nothing: train it, with base=RUN.")
    return notes


def _matched(checkpoint: Checkpoint, net: Classifier, notes: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give the backbone's state by its own names, and the last layer's weight and bias."""
    wanted = net.backbone.state_dict()
    state = dict(checkpoint.state)
    if net.name in BY_ORDER and not set(state) & set(wanted):
        state = _by_order(checkpoint, wanted)
        notes.append(f"The weights of {net.name} were matched by their order, as the file names them otherwise.")
    for name, value in wanted.items():
        if name not in state and name.endswith(COUNTER):
            state[name] = torch.zeros_like(value)
        if name not in state:
            raise _not_fitting(checkpoint, net, f"it has no {name}")
        if state[name].shape != value.shape:
            here, there = tuple(value.shape), tuple(state[name].shape)
            raise _not_fitting(checkpoint, net, f"{name} is {there} there and {here} here")
    rest = {name: value for name, value in state.items() if name not in wanted}
    usual = getattr(net.backbone, "pretrained_cfg", {}).get("classifier")
    rest = {name: value for name, value in state.items() if name not in wanted}
    last = {name.rpartition(".")[2]: value for name, value in rest.items()}
    size = tuple(last["weight"].shape) if "weight" in last else (0, net.num_features)
    if len(last) < len(rest) or not set(last) <= {"weight", "bias"} or len(size) != 2 or size[1] != net.num_features:
        odd = sorted(rest, key=lambda name: name.startswith(f"{usual}."))[0]
        raise _not_fitting(checkpoint, net, f"{odd} {tuple(rest[odd].shape)} has no place here")
    return {name: state[name] for name in wanted}, last


def _by_order(checkpoint: Checkpoint, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name a file's entries as ours are, one after the other, as long as kind and shape agree; the rest stays."""
    named: dict[str, Tensor] = {}
    theirs = [(name, value) for name, value in checkpoint.state.items() if not name.endswith(COUNTER)]
    ours = [(name, value) for name, value in wanted.items() if not name.endswith(COUNTER)]
    for (there, value), (here, like) in zip(theirs, ours, strict=False):
        kind = there.rpartition(".")[2] == here.rpartition(".")[2]
        if not kind or value.shape != like.shape:
            raise UserError(
                f"{checkpoint.path} does not fit: {there} is {tuple(value.shape)} and stands where {here} of "
                f"{tuple(like.shape)} is wanted; choose the net.backbone that it was made for."
            )
        named[here] = value
    return named | dict(theirs[len(ours) :])


def _not_fitting(checkpoint: Checkpoint, net: Classifier, why: str) -> UserError:
    return UserError(
        f"{checkpoint.path} does not fit {net.name}: {why}; choose the net.backbone that it was made for, and "
        "net.stem=standard unless it was made for small images."
    )


# ---- the last layer


def _rows(
    checkpoint: Checkpoint,
    net: Classifier,
    last: dict[str, Tensor],
    wanted: list[str],
    classes: list[str],
    notes: list[str],
) -> tuple[Tensor, Tensor]:
    """Give weight and bias of the last layer, a row for each class, in order."""
    weight = last["weight"]
    bias = last.get("bias", torch.zeros(len(weight)))
    known = classes or list(checkpoint.class_names)
    if known and len(known) != len(weight):
        raise UserError(f"{checkpoint.path} has {len(weight)} outputs, and {len(known)} classes are named for them.")
    if not known and len(weight) == len(FACE_ROWS) != len(wanted):
        known = list(FACE_ROWS)
    if len(net.head.weight) != len(wanted):
        raise UserError(f"{net.name} has {len(net.head.weight)} outputs here, not one a class: set head=new.")
    if known:
        rows = find_rows(wanted, known, str(checkpoint.path))
        notes.append(f"The last layer's rows {', '.join(map(str, rows))} of {len(weight)} were taken by their names.")
        return weight[rows], bias[rows]
    if len(weight) != len(wanted):
        raise UserError(
            f"{checkpoint.path} has {len(weight)} outputs and here are {len(wanted)} classes "
            f"({', '.join(wanted[:5])}): say what its outputs are with classes=a,b,c, or keep a fresh last layer with "
            "head=new."
        )
    notes.append(
        f"The last layer's rows were taken in their order, as {', '.join(wanted[:5])}"
        f"{', ...' if len(wanted) > 5 else ''}: the file does not name them; say them with classes=a,b,c to be sure."
    )
    return weight, bias


def find_rows(wanted: Sequence[str], known: Sequence[str], where: str) -> list[int]:
    """Find the row of each class by its name; case, blanks and underscores do not matter.

    Args:
        wanted: names of the classes.
        known: names of the rows.
        where: what has these rows, for the message.

    Raises:
        UserError: a class that no row is named after, or several.
    """
    names = [_plain(name) for name in known]
    rows = []
    for name in wanted:
        found = [row for row, other in enumerate(names) if other == _plain(name)]
        if not found:
            raise unknown(f"class of {where}", name, known)
        if len(found) > 1:
            raise UserError(f"{where} has several outputs called {name}: name each once, with classes=a,b,c.")
        rows += found
    return rows


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "", OTHERWISE.get(name.casefold().strip(), name).casefold())
