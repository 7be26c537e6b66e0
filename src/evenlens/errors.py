"""What a person did wrong, said in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something that was given cannot be used: the message says what, what is allowed and what to do.

    The command line prints the message alone and ends with exit code 2; from Python it is an ordinary exception.
    """


def unknown(kind: str, given: str, allowed: Iterable[str], elsewhere: Iterable[str] = ()) -> UserError:
    """Make the error for a name that is not known, with the nearest one that is.

    Args:
        kind: what was to be named, as a person would call it ("method", "option of flac").
        given: the name that was given.
        allowed: the names that exist.
        elsewhere: dotted names that exist in another place, in case their last part was meant ("train.epochs").
    """
    names = sorted(allowed)
    others = {name.rpartition(".")[2]: name for name in elsewhere}
    near = [others[given]] if given in others else get_close_matches(given, names, n=1, cutoff=0.5)
    near = near or [others[name] for name in get_close_matches(given, others, n=1, cutoff=0.7)]
    hint = f"; did you mean '{near[0]}'?" if near else "."
    listing = ", ".join(names) if names else "there are none"
    return UserError(f"Unknown {kind} '{given}'{hint} Known: {listing}.")
