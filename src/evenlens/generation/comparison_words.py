"""A comparison of generators in sentences, which say no more than its numbers. All are made of the findings' JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenlens.generation.words import APPARENT, DISTANCE_WORDS, level, percent, spread

Json = Mapping[str, Any]
ALMOST = 1.05  # ratios nearer to 1 are called equal

SPEEDS = {"1": "one at a time", "32": "32 at a time"}
AGAINST = {"teacher.others": "the teacher's images of other latents", "reference": "the reference images"}


def teacher(content: Json) -> Json:
    """Give the teacher's findings."""
    found: Json = content["generators"][0]
    return found


def students(content: Json) -> list[Json]:
    """Give the students' findings."""
    return list(content["generators"][1:])


def headline(content: Json) -> str:
    """Say the first finding in one sentence: how far each is from the target, by the first attribute."""
    part = teacher(content)["parts"][0]
    apart = percent(part["distances"]["total_variation"]["value"])
    said = [_short(each["name"], each["parts"][0]) for each in students(content)]
    return f"By {part['name']}, the teacher is {apart} away from {part['target']}; {listed(said)}."


def _short(name: str, part: Json) -> str:
    apart = part["distances"]["total_variation"]
    return f"“{name}” {percent(apart['value'])} ({nearer(apart['difference'])})"


def nearer(change: Json) -> str:
    """Say whether a student is nearer to the target than the teacher."""
    if change["high"] is None or change["low"] is None:
        return "not known which is nearer"
    if change["high"] < 0:
        return "clearly nearer"
    return "clearly farther" if change["low"] > 0 else "not clearly nearer or farther"


def listed(parts: list[str]) -> str:
    """Join words as people do: "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def sentences(content: Json) -> list[str]:
    """Say what else is found, a sentence or two for each student."""
    return [" ".join(filter(None, (_alike(each), _good(content, each), _small(each)))) for each in students(content)]


def part_sentences(content: Json, number: int) -> list[str]:
    """Say what is found for an attribute or a combination, a sentence for each generator."""
    said = []
    for each in content["generators"]:
        part = each["parts"][number]
        apart = part["distances"]["total_variation"]
        start = (
            f"“{each['name']}”: {percent(apart['value'])} of the images would have to be of another category to meet "
            f"the target, {part['target']} (total variation, {level(content)} interval {spread(apart)})"
        )
        by_chance = f"; by chance it would be {percent(apart['floor'])}"
        more = ""
        if each["role"] == "student":
            change = apart["difference"]
            ends = " to ".join(points(change[end]) for end in ("low", "high"))
            more = f". Less the teacher's that is {points(change['value'])} points ({ends}): {nearer(change)}"
        fixed = apart["corrected"]
        corrected = (
            "" if not fixed else f". Corrected for the classifier's errors, {percent(fixed['value'])} ({spread(fixed)})"
        )
        said.append(f"{start}{by_chance}{more}{corrected}.")
    return said


def points(value: float | None) -> str:
    """Write a difference of shares in points: -0.05 -> "−5.0"."""
    return "undefined" if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _alike(each: Json) -> str:
    part, pixels = each["parts"][0], each["pixels"]
    agreement = part["comparison"]["agreement"]
    said = (
        f"“{each['name']}” shows the same {part['name']} as the teacher at {percent(agreement['value'])} of the "
        f"latents ({spread(agreement)}), and its pixels differ by {percent(pixels['value'])} of the range from "
        "black to white."
    )
    if each["asked"]:
        right = each["asked"]["agreement"]
        said += (
            f" Of its images {percent(right['value'])} ({spread(right)}) are seen as the {each['asked']['attribute']} "
            "that it was asked for."
        )
    return said


def _good(content: Json, each: Json) -> str:
    name = next(iter(content["references"]), None)
    if name is None:
        return ""
    mine, its = (found["quality"][name]["all"] for found in (each, teacher(content)))
    away, own = f"{mine['fid']:.2f}", f"{its['fid']:.2f}"
    return f"Its FID to {AGAINST[name]} is {away}, where the teacher's own is {own} (n {mine['n']:,})."


def _small(each: Json) -> str:
    times, said = each["times"], []
    if times["num_parameters"]:
        said.append(f"has {compared(times['num_parameters'], 'fewer', 'more', 'as many')} parameters")
    if times["speed_1"]:
        said.append(f"is {compared(times['speed_1'], 'faster', 'slower', 'as fast')}, making one image at a time")
    return f"Beside the teacher it {' and '.join(said)}." if said else ""


def compared(ratio: float, more: str, less: str, equal: str = "equal") -> str:
    """Write a ratio: 2.3 -> "2.3 times faster"; 0.5 -> "2.0 times slower"; 1.01 -> "about equal"."""
    if 1 / ALMOST < ratio < ALMOST:
        return f"about {equal}"
    return f"{times(ratio)} times {more}" if ratio >= 1 else f"{times(1 / ratio)} times {less}"


def milliseconds(value: float) -> str:
    """Write a time to a sensible number of digits."""
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def times(ratio: float) -> str:
    """Write a ratio to a sensible number of digits."""
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def warnings(content: Json) -> list[str]:
    """Say loudly which students are judged by the classifier that they were trained with."""
    judges = {each["fingerprint"]: each["title"] for each in content["judges"]}
    said = [
        f"“{each['name']}” was trained with the classifier that judges it here ({judges[each['trained_with']]}): it "
        "may have learnt what this classifier takes for a group, instead of how people of it look. Its shares prove "
        "nothing. Judge it by another classifier (--by)."
        for each in students(content)
        if each["trained_with"] in judges
    ]
    network = content["extractor"]
    if network and network["fingerprint"] not in judges:
        said += [
            f"“{each['name']}” was trained with the network that quality is measured by ({network['title']}), which "
            "flatters it: take another with --extractor-run."
            for each in students(content)
            if each["trained_with"] == network["fingerprint"]
        ]
    return said


def caveats(content: Json) -> list[str]:
    """Say what a reader has to know to make no more of the numbers than they are."""
    said = [APPARENT]
    names = listed([f"{each['title']} ({', '.join(each['attributes'])})" for each in content["judges"]])
    said.append(
        f"The images were judged by {names}. A student has to be judged by another classifier than it was trained with."
    )
    unknown = [each["name"] for each in students(content) if not each["trained_with"]]
    if unknown:
        said.append(f"For {listed(unknown)} no classifier of the training is on record, so that could not be checked.")
    for each in content["generators"]:
        if each["asked"]:
            said.append(
                f"{each['name']} was asked for an exact number of each {each['attribute']}, so the intervals of those "
                "shares are wider than they need be, and their distance may lie below what it would be by chance."
            )
    for each in content["generators"]:
        lost = each["images"]["images"] - each["images"]["kept"]
        if lost:
            said.append(
                f"{lost:,} of {each['images']['images']:,} images of {each['name']} are in no share, as they have no "
                "face or several: if those are of some groups more often than of others, the shares are off."
            )
    if teacher(content)["folder"]:
        said.append(
            "The teacher is a folder of images. Where a student was trained on them, its agreement with the teacher "
            "and its pixels are those of images that it knows."
        )
    if content["why_no_quality"]:
        said.append(f"Quality was not measured: {content['why_no_quality']}")
    elif content["extractor"]:
        said.append(
            f"Features for quality are by {content['extractor']['title']}, whatever they were trained to see: their "
            "numbers compare with no other network's. FID is too large for few images, and compares at equal n only."
        )
    if not any(part["correction"] for part in teacher(content)["parts"]):
        said.append("The classifier's own errors are part of all shares: nothing is corrected.")
    said.append(
        "Intervals take images for independent draws of the generator, and the classifier for what it is. One training "
        "of each student is seen here: another seed would give another student."
    )
    return [*said, *dict.fromkeys(note for each in content["generators"] for note in each["notes"])]


def reading(content: Json) -> list[str]:
    """Explain what stands on the page."""
    said = [
        f"All generators were given the same {content['count']:,} latents (seed {content['seed']}). Students that are "
        "asked for a group were asked for each as often as the target wants it.",
        f"The intervals of a generator's shares hold together, {level(content)} (Goodman). Differences from the "
        "teacher are of images of the same latent, drawn together; their intervals hold one by one.",
        "“By chance” is how far from the target as many images would be on average that are drawn from the target "
        "itself: a distance means little near this.",
    ]
    if content["extractor"]:
        said.append(
            "Quality compares the features of images. The teacher's row, its images against other images of its own, "
            "is the best that can be expected. Images that show the groups in other shares differ for that reason "
            "too: a fair student is farther from an unfair teacher than a faithful copy, so look at the groups, which "
            "are all compared at the same n."
        )
    return said


def meanings() -> list[tuple[str, str]]:
    """Explain the distances from a target."""
    return [(title, text) for title, _, text in DISTANCE_WORDS.values()]
