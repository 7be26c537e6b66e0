"""evenlens shows how an image model treats groups of people, repairs it, and proves it.

    import evenlens

    data = evenlens.load("avatars")                        # Splits: train, tune, val, test
    run = evenlens.train("avatars", "erm", seed=1)         # a Run: config, metrics, predictions, the model
    findings = evenlens.audit(label, prediction, group)    # counts, rates, gaps, intervals from any predictions

Importing the package is quick: what needs torch is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from evenlens.errors import UserError

if TYPE_CHECKING:
    from evenlens.api import load, load_model, sweep, train, write_audit, write_report
    from evenlens.audits import Audit, audit, audit_file
    from evenlens.method import Method
    from evenlens.run import Run
    from evenlens.verification import Verification, verify

__version__ = "0.1.0"
__all__ = [
    "Audit",
    "Method",
    "Run",
    "UserError",
    "Verification",
    "audit",
    "audit_file",
    "load",
    "load_model",
    "sweep",
    "train",
    "verify",
    "write_audit",
    "write_report",
]

_HOMES = {
    "load": "api",
    "load_model": "api",
    "sweep": "api",
    "train": "api",
    "write_audit": "api",
    "write_report": "api",
    "audit": "audits",
    "audit_file": "audits",
    "Audit": "audits",
    "Method": "method",
    "Run": "run",
    "Verification": "verification",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evenlens' has no attribute '{name}'")
    return getattr(import_module(f"evenlens.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
