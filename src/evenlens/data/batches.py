"""Orders in which an epoch visits the rows: each a tensor of row numbers, made by a generator that is handed in."""

from __future__ import annotations

import torch
from torch import Tensor


def shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Visit each of `rows` (R,) once, in random order."""
    return rows[torch.randperm(len(rows), generator=generator)]


def weighted(weights: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draw `num` rows with replacement, row k with probability weights[k] / sum(weights)."""
    # by inversion: torch.multinomial takes at most 2**24 rows
    edges = weights.double().cumsum(0)
    draws = torch.rand(num, generator=generator, dtype=torch.float64) * edges[-1]
    return torch.searchsorted(edges, draws, right=True).clamp(max=len(weights) - 1)


def balanced(cell: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many rows as there are, with replacement, each cell that has rows being equally likely.

    Args:
        cell: (N,) number of each row's cell.
        generator: of the CPU.
    """
    counts = torch.bincount(cell)
    return weighted(1.0 / counts[cell].double(), len(cell), generator)


def take_per_cell(cell: Tensor, quota: Tensor, generator: torch.Generator) -> Tensor:
    """Draw quota[c] rows of every cell c, no row more often than another of its cell by more than one.

    With a quota below the cell's size this draws without replacement; above it, whole passes over the cell
    and then a draw without replacement.

    Args:
        cell: (N,) number of each row's cell.
        quota: (number of cells,) rows wanted of each; a cell without rows gives none.
        generator: of the CPU.

    Returns:
        Row numbers, sorted.
    """
    rank = torch.randperm(len(cell), generator=generator)  # one draw a row, so that the cells' numbers do not matter
    ranked_cell = cell[rank]
    chosen = []
    for number, wanted in enumerate(quota.tolist()):
        members = rank[ranked_cell == number]
        if len(members):
            whole, rest = divmod(int(wanted), len(members))
            chosen += [members.repeat(whole), members[:rest]]
    return torch.cat([rank[:0], *chosen]).sort().values
