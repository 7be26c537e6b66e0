"""A trained model and a folder of images in, a table of predictions out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenlens import engine, model_file
from evenlens.data.images import read_image
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.processes import cores
from evenlens.run import EVALUATION_BATCH, Watch, silent

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Written:
    """What became of a folder: how many images have a row, and why the others have none."""

    num_images: int
    unreadable: dict[str, str]


def predict_folder(
    model: Path, folder: Path, table: Path, skip_unreadable: bool = False, watch: Watch = silent
) -> Written:
    """Predict every image below a folder, and write the table in one piece.

    Args:
        model: a run's folder or its model.safetensors.
        folder: images, in sub-folders too; sorted by path.
        table: .csv or .parquet; columns `file`, `prediction` (the class's name) and `probability.<class>`.
        skip_unreadable: leave out images that cannot be read, instead of stopping at the end of a batch.
        watch: told of progress.

    Raises:
        UserError: no model, no images, another ending, or images that cannot be read.
    """
    if table.suffix not in (".csv", ".parquet"):
        raise UserError(f"'{table}' ends in '{table.suffix}': predictions are written as .csv or .parquet.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name one that holds images.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not files:
        raise UserError(f"No image below {folder}: looked for files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    method = model_file.load_model(model / "model.safetensors" if model.is_dir() else model)
    device = engine.start()
    method.to(device)
    names: list[str] = []
    logits: list[torch.Tensor] = []
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(files), EVALUATION_BATCH):
            batch = files[start : start + EVALUATION_BATCH]
            read = list(pool.map(lambda path: _try_read(path, method.task.image_size, method.config.data.fit), batch))
            unreadable |= {
                str(p.relative_to(folder)): r for p, r in zip(batch, read, strict=True) if isinstance(r, str)
            }
            if unreadable and not skip_unreadable:
                name, why = next(iter(unreadable.items()))
                raise UserError(
                    f"{len(unreadable)} of the first {start + len(batch):,} images cannot be read, such as {name} "
                    f"({why}): mend or remove them, or leave them out with --skip-unreadable."
                )
            images = [pixels for pixels in read if not isinstance(pixels, str)]
            if images:
                names += [
                    str(p.relative_to(folder)) for p, r in zip(batch, read, strict=True) if not isinstance(r, str)
                ]
                with torch.inference_mode():
                    pixels = torch.from_numpy(np.stack(images)).to(device)
                    logits.append(method(pixels.permute(0, 3, 1, 2).float().div_(255.0)).cpu())
            watch("images", start + len(batch), len(files))
    _write(
        table,
        names,
        torch.cat(logits).softmax(1) if logits else torch.empty(0, method.task.num_classes),
        method.task.class_names,
    )
    return Written(len(names), unreadable)


def _try_read(path: Path, size: int, fit: str) -> np.ndarray | str:
    try:
        return read_image(path, size, fit)[0]
    except OSError as error:
        return error.strerror or str(error)


def _write(path: Path, names: list[str], probability: torch.Tensor, class_names: tuple[str, ...]) -> None:
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    columns: dict[str, Any] = {
        "file": [os.fsencode(name).decode(errors="backslashreplace") for name in names],  # not every name is text
        "prediction": [class_names[k] for k in (probability.argmax(1).tolist() if names else [])],
    }
    for number, name in enumerate(class_names):
        columns[f"probability.{name}"] = probability[:, number].numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        (pyarrow.csv.write_csv if path.suffix == ".csv" else pyarrow.parquet.write_table)(pyarrow.table(columns), part)
