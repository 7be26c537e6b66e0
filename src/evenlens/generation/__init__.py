"""What generators of images make, by group: labels in, shares, distances from a target, corrections and quality out."""

from evenlens.generation.audit import GeneratorAudit, audit, compare_features, examples
from evenlens.generation.correction import Confusion, correct, corrected, read_confusion
from evenlens.generation.distances import distances
from evenlens.generation.distribution import Distribution, Tally, describe, difference, goodman, tally
from evenlens.generation.labels import Attribute, Faces, Labels, read_labels, write_labels
from evenlens.generation.quality import Features, Quality, compare, read_features
from evenlens.generation.targets import Targets

__all__ = [
    "Attribute",
    "Confusion",
    "Distribution",
    "Faces",
    "Features",
    "GeneratorAudit",
    "Labels",
    "Quality",
    "Tally",
    "Targets",
    "audit",
    "compare",
    "compare_features",
    "correct",
    "corrected",
    "describe",
    "difference",
    "distances",
    "examples",
    "goodman",
    "read_confusion",
    "read_features",
    "read_labels",
    "tally",
    "write_labels",
]
