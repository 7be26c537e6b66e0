"""Whole numbers of 8 bits in place of floats: smaller files, and faster where the processor has instructions for it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evenlens import measuring
from evenlens.data.batches import take_per_cell
from evenlens.data.dataset import FairDataset

CALIBRATION_IMAGES = 256
CALIBRATION_BATCH = 16


def calibration_rows(part: FairDataset, most: int = CALIBRATION_IMAGES, seed: int = 0) -> Tensor:
    """Draw the rows that ranges are read from: as many of each group, or all that it has; each once, sorted.

    Args:
        part: the training images.
        most: how many rows at most.
        seed: of the draw.
    """
    group = part.group.cpu()
    counts = torch.bincount(group, minlength=part.task.num_groups)
    each = max(1, most // max(1, int((counts > 0).sum())))
    generator = torch.Generator().manual_seed(seed)
    rows = take_per_cell(group, counts.clamp(max=each), generator)
    if len(rows) > most:  # more groups than images
        rows = rows[torch.randperm(len(rows), generator=generator)[:most]].sort().values
    return rows


class Calibration:
    """Images, a batch at a time, as ONNX Runtime asks for them."""

    def __init__(self, part: FairDataset, name: str) -> None:
        self.batches = part.on(torch.device("cpu"), batch_size=CALIBRATION_BATCH).in_order()
        self.name = name

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Give the next batch by the name of the model's input, or None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch.image.numpy()}


def view_nodes(path: Path) -> list[str]:
    """Name the nodes of an ONNX file that draw, for a network behind a view: lines are small differences of floats."""
    import onnx

    scopes = "pkg.torch.onnx.name_scopes"  # "['', 'view', ...]": below the whole, the part called view
    return [
        node.name
        for node in onnx.load(path, load_external_data=False).graph.node
        if any(entry.key == scopes and entry.value.startswith("['', 'view',") for entry in node.metadata_props)
    ]


def quantise(source: Path, target: Path, train: FairDataset) -> dict[str, Any]:
    """Quantise an ONNX file statically: weights by channel, activations by the ranges that training images show.

    Pairs of quantise and dequantise nodes stand in the file (QDQ); the logits stay floats, so that close ones do not
    become ties. Weights take 7 of their 8 bits: with 8, processors without VNNI instructions overflow silently, and the
    same file would predict differently there.

    Args:
        source: the file.
        target: the file to write.
        train: training images, of which at most 256 are looked at, evenly drawn over the groups.

    Returns:
        how it was made, as what JSON can hold.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rows = calibration_rows(train)
    part = train.select(rows)
    with measuring.quiet(), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Calibration(part, measuring.Session(source).input),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=view_nodes(source),
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
    by_group = torch.bincount(part.group.cpu(), minlength=train.task.num_groups).tolist()
    return {
        "scheme": "static, QDQ, weights by channel in 7 bits, activations in 8 bits, ranges from smallest to largest",
        "calibration_images": len(rows),
        "calibration_by_group": dict(zip(train.task.group_names, by_group, strict=True)),
    }
