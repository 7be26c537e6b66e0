"""How close generated images are to reference images, from the features that a network gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evenlens.errors import UserError
from evenlens.metrics import Floats

BLOCK = 1024  # rows of a matrix of distances that are held at once
NEIGHBOURS, ROBUST_NEIGHBOURS = 3, 5
SUBSETS, SUBSET_SIZE = 100, 1000
FEWEST = 20  # images of a group that are compared


@dataclass(frozen=True)
class Features:
    """What a network makes of N images.

    Attributes:
        values: (N, D) float64, finite.
        ids: (N,) which image each row is of; None: the file does not say.
        where: what they were read from, for people.
    """

    values: Floats
    ids: np.ndarray | None = None
    where: str = ""

    def __len__(self) -> int:
        return len(self.values)


class Quality(NamedTuple):
    """How generated images compare with as many reference images.

    Attributes:
        n: images of each of the two.
        fid: Frechet distance, at least 0; of few images it is too large.
        kid: squared kernel distance, mean over subsets; without bias, so it may be below 0.
        kid_sd: its standard deviation over subsets.
        precision: share of generated images that lie where reference images are, in [0, 1].
        recall: share of reference images that lie where generated images are, in [0, 1].
        density: of reference images around generated ones; 1 is usual, and it may be more.
        coverage: share of reference images with a generated one nearby, in [0, 1].
    """

    n: int
    fid: float
    kid: float
    kid_sd: float
    precision: float
    recall: float
    density: float
    coverage: float


def read_features(path: Path | str) -> Features:
    """Read features: a .npy file with one array (N, D), or .safetensors with one tensor.

    The metadata of a .safetensors file may hold `ids`, a JSON list with the image of each row. Nothing is ever run:
    pickles are refused.

    Raises:
        UserError: no such file, a pickle, a damaged file, another shape than (N, D), or a number that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file of features {path}: give a .npy or .safetensors file.")
    if path.suffix.lower() not in (".npy", ".safetensors"):
        raise UserError(
            f"{path} is not read: features are one array (N, D) in .npy or .safetensors. Pickles, which may run code "
            "when they are opened, are not accepted; write them with numpy.save(path, array)."
        )
    values, ids = _read_npy(path) if path.suffix.lower() == ".npy" else _read_safetensors(path)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiu":
        raise UserError(
            f"The features of {path} have the shape {values.shape} and the type {values.dtype}: one row of numbers for "
            "each image is needed, (N, D)."
        )
    made = values.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(made).all(axis=1))
    if len(wrong):
        raise UserError(
            f"Row {wrong[0] + 1:,} of {path} holds a number that is not finite ({len(wrong):,} rows do): look at these "
            "images, and make the features again."
        )
    if ids is not None and (len(ids) != len(made) or len(set(ids.tolist())) < len(ids)):
        raise UserError(f"{path} has {len(made):,} rows, and its ids are not as many different ones: write it again.")
    return Features(made, ids, str(path))


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    try:
        return np.load(path, allow_pickle=False), None
    except (ValueError, OSError, EOFError) as error:
        why = "it holds a pickle, which may run code when it is opened" if "pickle" in str(error) else "it is damaged"
        raise UserError(f"{path} is not read, as {why}: write it with numpy.save(path, array of numbers).") from None


def _read_safetensors(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names, more = list(file.keys()), file.metadata() or {}
            values = file.get_tensor(names[0]) if len(names) == 1 else None
        ids = np.array(json.loads(more["ids"]), dtype=str) if "ids" in more else None
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no such file ({str(error)[:100]}): write it again.") from None
    if values is None:
        raise UserError(f"{path} holds {len(names)} tensors ({', '.join(names[:5])}): one with the features is needed.")
    return values, ids


def compare(generated: Floats, reference: Floats, seed: int = 0, subsets: int = SUBSETS) -> Quality:
    """Compare generated with reference images, as many of each: of the larger set some are chosen by the seed.

    Args:
        generated: (N, D) features.
        reference: (M, D) features by the same network.
        seed: of the choice, and of the subsets.
        subsets: for KID, of 1000 images, or of half of them where there are fewer than 2000.

    Raises:
        UserError: the features have different lengths, or there are too few images.
    """
    check_fit(generated, reference)
    n = min(len(generated), len(reference))
    random = np.random.default_rng(seed)
    made, real = (part if len(part) == n else part[random.choice(n_all, n, replace=False)]
                  for part, n_all in ((generated, len(generated)), (reference, len(reference))))  # fmt: skip
    kid, spread = kernel_distance(made, real, subsets, min(SUBSET_SIZE, n // 2), seed)
    return Quality(n, frechet_distance(made, real), kid, spread, *neighbourhoods(made, real))


def check_fit(generated: Floats, reference: Floats) -> None:
    """Refuse features that cannot be compared."""
    if generated.shape[1] != reference.shape[1]:
        raise UserError(
            f"Generated images have {generated.shape[1]} features and reference images {reference.shape[1]}: both must "
            "be from the same network."
        )
    n = min(len(generated), len(reference))
    if n <= ROBUST_NEIGHBOURS:
        raise UserError(f"Quality needs more than {ROBUST_NEIGHBOURS} images of each kind; there are {n}.")


def frechet_distance(generated: Floats, reference: Floats) -> float:
    """Give the Frechet distance of two normal distributions fitted to features (N, D) and (M, D).

    |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)), where the last trace is the sum of the roots of the eigenvalues of the
    symmetric S1^(1/2) S2 S1^(1/2), negative ones, which are rounding, being 0. Of few images it is too large: compare
    it only where N is the same.

    Source: Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter, 2017, arXiv 1706.08500; Dowson and Landau, 1982.
    Differs from their code, which takes the root of a matrix that is not symmetric, and drops its imaginary part.
    """
    apart = float(((generated.mean(0) - reference.mean(0)) ** 2).sum())
    one, two = (np.cov(part, rowvar=False).reshape(part.shape[1], -1) for part in (generated, reference))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ two @ root
    shared = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    return max(0.0, apart + float(np.trace(one) + np.trace(two)) - 2 * float(shared))


def kernel_distance(
    generated: Floats, reference: Floats, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Give the mean and the standard deviation of the unbiased squared MMD over random subsets.

    The kernel is (x . y / D + 1)^3.

    Args:
        generated: (N, D).
        reference: (M, D).
        subsets: how many, each drawn without replacement from both.
        size: images of each in a subset; fewer where there are fewer.
        seed: of the subsets.

    Source: Binkowski, Sutherland, Arbel and Gretton, 2018, Demystifying MMD GANs, arXiv 1801.01401.
    """
    random = np.random.default_rng(seed)
    size = min(size, len(generated), len(reference))
    found = np.empty(subsets)
    for k in range(subsets):
        x = generated[random.choice(len(generated), size, replace=False)]
        y = reference[random.choice(len(reference), size, replace=False)]
        within = sum((m.sum() - np.trace(m)) / (size * (size - 1)) for m in (_kernel(x, x), _kernel(y, y)))
        found[k] = within - 2 * _kernel(x, y).mean()
    return float(found.mean()), float(found.std(ddof=1)) if subsets > 1 else math.nan


def _kernel(x: Floats, y: Floats) -> Floats:
    inner = x @ y.T / x.shape[1] + 1
    return inner * inner * inner


def neighbourhoods(generated: Floats, reference: Floats) -> tuple[float, float, float, float]:
    """Give precision, recall, density and coverage.

    The ball of an image reaches to its third nearest neighbour of its own kind (its fifth, for density and coverage).
    Precision is the share of generated images within a *reference* image's ball, recall that of reference images within
    a *generated* image's ball: a generator that makes one good image again and again has precision 1 and recall near 0.

    Args:
        generated: (N, D).
        reference: (M, D).

    Source: Kynkaanniemi, Karras, Laine, Lehtinen and Aila, 2019, arXiv 1904.06991; Naeem, Oh, Uh, Choi and Yoo, 2020,
    arXiv 2002.09797 (density and coverage).
    """
    centre = reference.mean(axis=0)  # small numbers lose fewer digits in differences of squares
    made, real = generated - centre, reference - centre
    of_real, of_made = _radii(real), _radii(made)[:, 0]
    inside = np.zeros(len(made), dtype=bool)
    balls = 0
    recalled, covered = np.zeros(len(real), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows, squares in _squares(made, real):
        inside[rows] = (squares <= of_real[:, 0]).any(axis=1)
        within = squares <= of_real[:, 1]
        balls += int(within.sum())
        covered |= within.any(axis=0)
        recalled |= (squares <= of_made[rows, None]).any(axis=0)
    density = balls / (ROBUST_NEIGHBOURS * len(made))
    return float(inside.mean()), float(recalled.mean()), density, float(covered.mean())


def _radii(points: Floats) -> Floats:
    """Give the squared distances (N, 2) to the third and fifth nearest other point."""
    found = np.empty((len(points), 2))
    for rows, squares in _squares(points, points):
        squares[np.arange(squares.shape[0]), np.arange(rows.start, rows.start + squares.shape[0])] = -1  # itself
        nearest = np.partition(squares, (NEIGHBOURS, ROBUST_NEIGHBOURS), axis=1)
        found[rows] = nearest[:, [NEIGHBOURS, ROBUST_NEIGHBOURS]]
    return found


def _squares(x: Floats, y: Floats) -> Iterator[tuple[slice, Floats]]:
    """Give squared distances between (N, D) and (M, D), some rows at a time, rounding errors below 0 as 0."""
    lengths = (y * y).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        part = x[rows]
        yield rows, ((part * part).sum(axis=1)[:, None] + lengths - 2 * part @ y.T).clip(0)


def by_group(
    generated: Mapping[str, Floats], reference: Mapping[str, Floats], seed: int = 0, subsets: int = SUBSETS
) -> tuple[dict[str, Quality], list[str]]:
    """Compare the images of each group with the reference images of the same group, n alike for all groups.

    Args:
        generated: features (N, D) by group.
        reference: likewise.
        seed: of the choice of images.
        subsets: for KID.

    Returns:
        quality by group; and the groups that have fewer than `FEWEST` images on either side, and are left out.
    """
    sizes = {name: min(len(part), len(reference.get(name, ()))) for name, part in generated.items()}
    kept = [name for name, size in sizes.items() if size >= FEWEST]
    if not kept:
        return {}, list(sizes)
    n = min(sizes[name] for name in kept)
    random = np.random.default_rng(seed)

    def some(part: Floats) -> Floats:
        return part[np.sort(random.choice(len(part), n, replace=False))]

    found = {name: compare(some(generated[name]), some(reference[name]), seed, subsets) for name in kept}
    return found, [name for name in sizes if name not in kept]


def as_dict(found: Quality) -> dict[str, Any]:
    """Give it as JSON can hold it."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in found._asdict().items()}  # fmt: skip
