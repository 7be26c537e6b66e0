"""Network pickles to safetensors: the pickle is read in a process of its own, which has a time limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from evenlens.errors import UserError
from evenlens.files import replacing

READER = "evenlens.generation.teachers._nvidia"
SECONDS = 600.0


def convert(
    source: Path | str, target: Path | str, trust_pickle: bool = False, seconds: float = SECONDS
) -> dict[str, Any]:
    """Write the generator of a StyleGAN2-ADA pickle to safetensors, which `teachers.load` opens.

    The reader knows the few names that weights need and refuses all others, and does not execute the source text that
    such a pickle holds. A pickle is still a program, and readers have had faults: it is read only on request, and in a
    process of its own, which can neither connect anywhere nor start a program.

    Args:
        source: the pickle.
        target: new .safetensors file.
        trust_pickle: that whoever made the pickle is trusted.
        seconds: that the process may take.

    Returns:
        The form of the network: `channels`, `z_dim`, `w_dim`, `c_dim`, `num_layers`, and `num_parameters`.

    Raises:
        UserError: no trust, no such file, the target is there, another kind of pickle, or the process fails.
    """
    source, target = Path(source), Path(target)
    if not trust_pickle:
        raise UserError(
            f"{source} is not opened: a pickle is a program, and runs with your rights. If you trust who made it, add "
            "--trust-pickle; it is then read once, in a process of its own, by a reader that runs none of its code."
        )
    if not source.is_file():
        raise UserError(f"There is no pickle at {source}: give the path of a .pkl file of StyleGAN2-ADA for PyTorch.")
    if target.suffix.lower() != ".safetensors" or target.exists() or not target.parent.is_dir():
        raise UserError(
            f"{target} cannot be written: name a new file in a folder that is there, ending in .safetensors."
        )
    with replacing(target) as part:
        found = _in_own_process(source, part, seconds)
        if "error" in found:
            raise UserError(f"{source} is not converted: {found['error']}.")
        if not part.is_file():
            raise UserError(f"{source} is not converted: the process that reads it wrote nothing; try again.")
    return found


def _in_own_process(source: Path, part: Path, seconds: float) -> dict[str, Any]:
    words = [sys.executable, "-P", "-m", READER, str(source.resolve()), str(part.resolve())]
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False,
                               stdin=subprocess.DEVNULL)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{source} is not converted: reading it took more than {seconds:.0f} seconds, the limit."
        ) from None
    try:
        return dict(json.loads(ended.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        why = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]
        raise UserError(
            f"{source} is not converted: the process that reads it ended with code {ended.returncode} ({why}); with "
            "-9 memory may have run out."
        ) from None
