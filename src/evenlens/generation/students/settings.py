"""How a student is trained: settings by name, checked before any work."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from evenlens.config import Section, first_mistake
from evenlens.errors import UserError, unknown
from evenlens.generation.students.nets import SIZES
from evenlens.generation.students.terms import Schedule

Weight = float | str
TERMS = ("pixel", "features", "perceptual", "adversarial", "diversity", "group")
CLASSIFYING = ("perceptual", "diversity", "group")
"""Terms that look through a classifier."""

TEACHING: dict[str, Any] = {"kind": "non_saturating", "gradient_penalty": 1.0, "adversarial": 1.0}
"""What suits learning from images alone, where the defaults suit learning from a teacher."""


class Settings(Section):
    """How a student, or a teacher of one's own, is trained. A weight is a number, or two as "1->0"."""

    size: int | None = Field(None, description="height and width in pixels; default: the images' own")
    latent_size: int = Field(64, ge=1, le=4096, description="numbers of a latent, where there are no samples to learn")
    channels: int = Field(64, ge=1, le=1024, description="of the student's last feature map")
    discriminator_channels: int = Field(64, ge=1, le=1024, description="of the discriminator's first layer")
    epochs: int = Field(30, ge=1, description="scored, drawn and saved after each")
    steps: int | None = Field(None, ge=1, description="of the whole training; default: each epoch one pass")
    batch_size: int = Field(64, ge=2, description="images a step")
    learning_rate: float = Field(1e-3, gt=0, description="of both networks; it falls to 0 along a cosine")
    weight_decay: float = Field(1e-4, ge=0, description="of both networks")
    clip: float = Field(0.0, ge=0, description="longest gradient of the student; 0 leaves it as it is")
    average: float = Field(0.999, ge=0, lt=1, description="decay of the weights' moving average, which is what is kept")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU, fp32 elsewhere")
    seed: int = Field(1, ge=0, lt=2**63, description="of weights, order and fresh latents")
    kind: Literal["bce", "hinge", "non_saturating"] = Field("bce", description="of the adversarial loss")
    gradient_penalty: float = Field(0.0, ge=0, description="weight of R1, for non_saturating")
    pixel: Weight = Field("1->0", description="weight of the difference to the teacher's image")
    features: Weight = Field(0.4, description="weight of the difference in the discriminator's layers")
    adversarial: Weight = Field(0.3, description="weight of deceiving the discriminator")
    perceptual: Weight = Field(0.0, description="weight of the difference in the classifier's features")
    diversity: Weight = Field(0.0, description="weight of how far fresh images' attributes are from the target")
    group: Weight = Field(0.0, description="weight of making the group that is asked for, as the classifier sees it")
    fresh: bool = Field(False, description="also judge images of fresh latents, which have no teacher's image")
    temperature: float = Field(1.0, gt=0, description="of the classes' probabilities in diversity")
    entropy: float = Field(0.1, ge=0, description="weight, within diversity, of each image's own entropy")
    variation_weight: float = Field(1.0, ge=0, description="of the total variation, beside KID, in choosing an epoch")
    judged: int = Field(1000, ge=50, description="images that are made to choose an epoch")

    def schedule(self, term: str) -> Schedule:
        """Give the schedule of a term's weight."""
        return Schedule.read(term, getattr(self, term))

    def used(self, *terms: str) -> list[str]:
        """Give those of these terms that ever weigh anything."""
        return [term for term in terms if self.schedule(term).used]


def read_settings(given: dict[str, Any]) -> Settings:
    """Check settings by name.

    Raises:
        UserError: an unknown name, with the nearest known one, or a value that is not allowed.
    """
    for name in given:
        if name not in Settings.model_fields:
            raise unknown("setting of a student", name, Settings.model_fields)
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        place, message = first_mistake(error)
        raise UserError(f"{place}={given[place]!r} is not allowed: {message}.") from None
    for term in TERMS:
        settings.schedule(term)
    if settings.size is not None and settings.size not in SIZES:
        raise UserError(f"size={settings.size} is not allowed: it is one of {', '.join(map(str, SIZES))}.")
    return settings
