"""An audit of a generator in sentences, which say no more than its numbers. All are made of the findings' JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evenlens.generation.distances import FEW

# What a distance is called, what it says, and which direction is nearer to the target.
DISTANCE_WORDS = {
    "total_variation": (
        "Total variation", "↓",
        "The share of images that would have to be of another category to meet the target: 0 to 1.",
    ),
    "kl": (
        "KL divergence", "↓",
        "Kullback and Leibler's divergence of the shares from the target, in nats; 0 or more. Rare categories of the "
        "target weigh much in it.",
    ),
    "js": ("Jensen-Shannon", "↓", "Jensen and Shannon's divergence, which is symmetric, in nats: 0 to 0.693."),
    "l2": ("L2 distance", "↓", "Euclidean distance of the shares from the target: 0 to 1.414."),
    "evenness": (
        "Evenness", "↑",
        "Entropy of the shares by that of equal shares: 0 where all images are of one category, 1 where all categories "
        "are equally frequent. It knows no other target.",
    ),
    "min_max_ratio": (
        "Smallest by largest", "↑",
        "The smallest share divided by the largest: 0 to 1. It knows no other target than equal shares.",
    ),
}  # fmt: skip
QUALITY_WORDS = {
    "fid": (
        "FID",
        "↓",
        "Frechet distance of the features. It is too large for few images: compare it at equal n only.",
    ),
    "kid": ("KID", "↓", "Kernel distance of the features, mean over subsets; without bias, so it may be below 0."),
    "precision": (
        "Precision",
        "↑",
        "Share of generated images that lie where reference images lie: do they look real?",
    ),
    "recall": ("Recall", "↑", "Share of reference images that lie where generated images lie: is all of it made?"),
    "density": (
        "Density",
        "↑",
        "How closely reference images lie around generated ones; about 1 where both are alike.",
    ),
    "coverage": ("Coverage", "↑", "Share of reference images with a generated one nearby: 0 to 1."),
}
RULES = {
    "single": "those with exactly one face",
    "first": "by the first face of each",
    "confident": "by the face of each that the classifier is surest of",
}
APPARENT = (
    "The categories are apparent attributes that a classifier assigned to images; they are not identities, and a "
    "generated face has none."
)

Json = Mapping[str, Any]


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share for people: 0.451 -> "45.1 %"."""
    return "undefined" if value is None else f"{100 * value:.{digits}f} %"


def spread(number: Json, digits: int = 1) -> str:
    """Write the interval of a share: "44.0 to 46.2 %"."""
    if number["low"] is None:
        return "no interval"
    return f"{100 * number['low']:.{digits}f} to {100 * number['high']:.{digits}f} %"


def level(content: Json) -> str:
    """Write the confidence: "95 %"."""
    return f"{100 * content['confidence']:g} %"


def images(part: Json) -> str:
    """Say how many images a part rests on."""
    return f"{part['n']:,} images" if part["n"] != 1 else "1 image"


def headline(content: Json) -> str:
    """Say the first finding in one sentence."""
    part = content["parts"][0]
    top, bottom = _ends(part)
    return (
        f"By {part['name']}, “{top['name']}” is seen in {percent(top['share']['value'])} of the images and "
        f"“{bottom['name']}” in {percent(bottom['share']['value'])}: {_verdict(part, content)}."
    )


def sentences(content: Json, part: Json) -> list[str]:
    """Say what is found for an attribute or a combination."""
    said = [_extremes(content, part), _distance(content, part)]
    if part["correction"]:
        said.append(_corrected(content, part))
    if part["comparison"]:
        said.append(_compared(content, part))
    return said


def _ends(part: Json) -> tuple[Json, Json]:
    ordered = sorted(part["categories"], key=lambda entry: entry["count"])
    return ordered[-1], ordered[0]


def _tested(part: Json) -> str:
    """Say what the chi-square test can: "yes", "few" images for it, or "no", where the target lacks a category."""
    if part["test"]["p_value"] is None:
        return "no"
    return "few" if part["test"]["expected"] < FEW else "yes"


def differs(content: Json, part: Json) -> bool | None:
    """Say whether the shares are clearly not the target's; None where that cannot be tested."""
    if _tested(part) == "no":
        return True  # images of a category of which the target has none
    if _tested(part) == "few":
        return None
    clear: bool = part["test"]["p_value"] <= 1 - content["confidence"]
    return clear


def _verdict(part: Json, content: Json) -> str:
    clear = differs(content, part)
    if clear is None:
        return f"too few images to tell whether that is {part['target']}"
    if clear:
        return f"clearly not {part['target']}"
    return f"not clearly different from {part['target']}"


def _extremes(content: Json, part: Json) -> str:
    top, bottom = _ends(part)
    never = [entry["name"] for entry in part["categories"] if not entry["count"]]
    said = (
        f"“{top['name']}” is the most frequent of {len(part['categories'])} categories, with "
        f"{percent(top['share']['value'])} of {images(part)} ({level(content)} interval {spread(top['together'])})"
    )
    if len(never) > 1:
        return f"{said}; {len(never)} never occur."
    low = "never occurs" if never else f"is the rarest, with {percent(bottom['share']['value'])}"
    return f"{said}; “{bottom['name']}” {low} ({spread(bottom['together'])})."


def _distance(content: Json, part: Json) -> str:
    apart, test = part["distances"]["total_variation"], part["test"]
    moved = (
        f"To meet the target, {part['target']}, {percent(apart['value'])} of the images would have to be of another "
        f"category (total variation, {level(content)} interval {spread(apart)})"
    )
    by_chance = f"images drawn from the target itself would be {percent(apart['floor'])} away on average"
    clear = differs(content, part)
    if _tested(part) == "no":
        return f"{moved}. Images are in a category of which the target has none, so it is not met."
    if clear is None:
        few = f"The target gives its rarest category fewer than {FEW} images here, too few for a test."
        return f"{moved}; {by_chance}. {few}"
    how = p_words(test["p_value"])
    return f"{moved}; {by_chance}. That is {'clearly more' if clear else 'not clearly more'} (chi-square test, {how})."


def chi_square_words(test: Json) -> str:
    """Write the numbers of a chi-square test."""
    if test["p_value"] is None:
        return "No chi-square test: images are in a category of which the target has none."
    degrees = f"{test['degrees']} degree{'s' if test['degrees'] > 1 else ''} of freedom"
    return (
        f"Chi-square {test['statistic']:,.1f}, {degrees}, {p_words(test['p_value'])}; effect size "
        f"{test['effect']:.3f}; G {test['g']:,.1f}."
    )


def p_words(value: float | None) -> str:
    """Write a p-value: "p = 0.03"."""
    if value is None:
        return "undefined"
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def _corrected(content: Json, part: Json) -> str:
    top, _ = _ends(part)
    apart = part["distances"]["total_variation"]["corrected"]
    one = top["corrected"]
    return (
        f"Corrected for the classifier's errors, “{top['name']}” is {percent(one['value'])} ({level(content)} interval "
        f"{spread(one)}), and the total variation {percent(apart['value'])} ({spread(apart)})."
    )


def _compared(content: Json, part: Json) -> str:
    number = part["distances"]["total_variation"]
    change, other, pair = number["difference"], number["other"], part["comparison"]
    how = f"{pair['pairs']:,} images with the same ids" if pair["paired"] else f"{pair['n']:,} other images"
    apart = f"{100 * change['value']:+.1f}".replace("-", "\N{MINUS SIGN}")
    ends = " to ".join(f"{100 * change[end]:+.1f}".replace("-", "\N{MINUS SIGN}") for end in ("low", "high"))
    clear = "clearly nearer to" if change["high"] < 0 else "clearly farther from" if change["low"] > 0 else None
    said = f"{clear} the target" if clear else "not clearly nearer to or farther from the target"
    same = ""
    if pair["paired"] and pair["agreement"]["value"] is not None:
        same = f" {percent(pair['agreement']['value'])} of the pairs have the same category."
    name = Path(content["against"]["source"]).name
    return (
        f"{name} ({how}) is {said}: its total variation is {percent(other['value'])}, which is {apart} "
        f"points ({level(content)} interval {ends}).{same}"
    )


def faces(content: Json) -> str:
    """Say which images are counted, and which are not."""
    seen = content["images"]
    without, several = seen["share_without"], seen["share_several"]
    return (
        f"{seen['kept']:,} of {seen['images']:,} images are counted, {RULES[seen['rule']]}. No face was found "
        f"in {percent(without['value'])} ({spread(without)}); {percent(several['value'])} ({spread(several)}) have "
        "several."
    )


def quality_sentence(content: Json) -> str:
    """Say what was compared by features."""
    found = content["quality"]
    whole = found["all"]
    return (
        f"Features are by {found['extractor']} ({found['num_features']:,} numbers an image); {whole['n']:,} generated "
        f"images are compared with as many reference images. Numbers by other features, or at another n, are not "
        "comparable with these."
    )


def caveats(content: Json) -> list[str]:
    """Say what a reader has to know to make no more of the numbers than they are."""
    said = [APPARENT]
    against = content["against"] and Path(content["against"]["source"]).name
    for where, one in (("", content), (f" of {against}" if against else "", content["against"])):
        lost = one and one["images"]["images"] - one["images"]["kept"]
        if lost:
            said.append(
                f"{lost:,} of {one['images']['images']:,} images{where} are in no share, as they have no face or "
                "several: if those are of some groups more often than of others, the shares are off."
            )
    for part in content["parts"]:
        said += _caveats_of(part)
    fixed = [part for part in content["parts"] if part["correction"]]
    if len(fixed) < len(content["parts"]):
        lacking = ", ".join(part["name"] for part in content["parts"] if not part["correction"])
        said.append(f"The classifier's own errors are part of the shares of {lacking}: nothing is corrected there.")
    if fixed:
        said.append("The correction assumes that the classifier errs on generated images as on the labelled ones.")
    said.append("Intervals take images for independent draws of the generator, and the classifier for what it is.")
    return [*said, *content["notes"]]


def _caveats_of(part: Json) -> list[str]:
    said = []
    if part["unlabelled"]:
        said.append(f"{part['unlabelled']:,} images with a face have no {part['name']}, and are not counted in it.")
    if not part["complete"] and part["target"] == "equal shares":
        said.append(
            f"The labels have no probabilities of {part['name']}, so a category that no image has is not known: name "
            "all in --target."
        )
    if _tested(part) == "few":
        said.append(
            f"The target gives a category of {part['name']} {part['test']['expected']:.1f} images: its chi-square test "
            "and intervals are rough."
        )
    if part["correction"] and part["correction"]["ill"]:
        number = part["correction"]["condition"]
        size = "without limit" if number is None else f"condition number {number:.0f}"
        said.append(
            f"The classifier takes classes of {part['name']} for each other so often ({size}) that the correction "
            "mostly amplifies noise: take the raw shares with the confusion matrix beside them."
        )
    return said


def reading(content: Json) -> list[str]:
    """Explain the intervals, and the targets."""
    said = [
        f"The intervals of the shares hold together: in {level(content)} of all such audits, each contains the share "
        "that the generator makes in the long run, as this classifier sees it (Goodman). Mean probabilities count an "
        "image for each class by as much as the classifier is sure of it.",
        "“By chance” is how far from the target as many images would be on average that are drawn from the target "
        "itself. No finite number of images meets a target exactly, so a distance means little near this.",
        "The interval of a distance holds the distances that the generator may have in truth, as what was found is to "
        "be expected of them: if it has the target's shares, images are still found at some distance.",
    ]
    if any(part["correction"] for part in content["parts"]):
        said.append(
            "Corrected shares are those of true classes which, with the errors that the classifier makes on labelled "
            "images, explain the observed shares best. Their intervals hold one by one, and are of both kinds of "
            "doubt: few generated images, and few labelled ones."
        )
    return said
