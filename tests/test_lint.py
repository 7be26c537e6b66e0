"""Tables of results: each mistake is found where it is, and not where it is not."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from evenlens.audits.lint import CODES, Finding, lint
from evenlens.audits.lint.numbers import _whole
from evenlens.audits.lint.results import Number
from evenlens.audits.lint.tables import ROLES, read_results
from evenlens.errors import UserError

GROUPS = {"a": 900, "b": 300, "c": 300}
FAIR = (810, 270, 270)  # 90 % of each
UNFAIR = (855, 240, 225)  # 95, 80 and 75 %
REPAIRED = (846, 264, 264)  # 94, 88 and 88 %


def table(methods, groups=GROUPS, **more):
    """Rows of methods: {name: numbers of right images}, or {(name, seed): ...}; more columns are the same in all."""
    for name, right in methods.items():
        name, seed = name if isinstance(name, tuple) else (name, "1")
        for (group, n), correct in zip(groups.items(), right, strict=True):
            yield {"method": name, "seed": seed, "group": group, "n": n, "accuracy": correct / n, **more}


def saved(path, *tables):
    """Rows as a CSV file."""
    rows = [row for table in tables for row in table]
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def codes(tmp_path):
    """Lint rows as one table, and give the findings by code, without the note on what was not checked."""

    def found(*tables, **options):
        codes = {}
        for finding in lint([saved(tmp_path / "results.csv", *tables)], **options):
            if finding.code != "L000":
                codes.setdefault(finding.code, []).append(finding)
        return codes

    return found


GOOD = {(name, seed): right for seed in "123" for name, right in (("baseline", UNFAIR), ("better", REPAIRED))}


def test_a_table_without_a_mistake_has_no_finding(codes):
    good = {(name, seed): np.add(right, (int(seed), 0, -int(seed))) for (name, seed), right in GOOD.items()}
    assert codes(table(good)) == {}


# ---- L001


def test_a_majority_group_that_is_the_worst_is_found(codes):
    (finding,) = codes(table({"m": (675, 270, 270)}))["L001"]
    assert finding.severity == "warning"
    assert "The worst group of m is a, which has the most images, 900 of 1,500 images (60 %" in finding.seen
    assert "even share is 33 %" in finding.seen


def test_a_worst_group_that_is_a_minority_or_no_larger_than_others_is_in_order(codes):
    assert "L001" not in codes(table({"m": (810, 225, 270)}))
    assert "L001" not in codes(table({"m": (225, 270, 270)}, {"a": 320, "b": 300, "c": 300}))


def test_a_majority_that_is_worst_by_chance_is_a_note(codes):
    (finding,) = codes(table({"m": (809, 270, 270)}))["L001"]
    assert finding.severity == "note"
    assert "may be chance" in finding.seen


def test_the_majority_is_that_of_training_where_it_is_told(codes):
    rows = list(table({"m": (225, 270, 270)}, {"a": 300, "b": 300, "c": 300}))
    for row, n_train in zip(rows, (9000, 500, 500), strict=True):
        row["n_train"] = n_train
    (finding,) = codes(rows)["L001"]
    assert "9,000 of 10,000 training images (90 %" in finding.seen


def test_a_majority_is_told_by_the_images_of_this_part_where_training_is_known_for_some_groups_alone(codes):
    rows = list(table({"m": (675, 270, 270)}))
    rows[1]["n_train"] = 10_000
    assert "900 of 1,500 images" in codes(rows)["L001"][0].seen


def test_of_methods_with_the_same_worst_group_one_that_is_no_chance_is_enough(codes):
    (finding,) = codes(table({"clear": (675, 270, 270), "near": (809, 270, 270)}))["L001"]
    assert finding.severity == "warning"
    assert "of clear, near is a" in finding.seen


# ---- L002


def test_a_group_that_a_method_lacks_is_found(codes):
    rows = list(table(GOOD))
    rows = [row for row in rows if (row["method"], row["group"]) != ("better", "c")]
    (finding,) = codes(rows)["L002"]
    assert finding.severity == "error"
    assert finding.seen == "The group c is missing for better, and there for others."


def test_a_group_without_a_rate_is_as_good_as_missing(codes):
    rows = list(table({"baseline": UNFAIR, "better": REPAIRED}))
    rows[-1]["accuracy"] = ""
    assert "The group c is missing for better" in codes(rows)["L002"][0].seen


def test_a_group_that_a_table_lacks_is_found_and_one_that_is_written_otherwise(tmp_path):
    one = saved(tmp_path / "one.csv", table({"baseline": UNFAIR}))
    other = saved(tmp_path / "other.csv", table({"better": REPAIRED}, {"a": 900, "b": 300, "C": 300}))
    seen = [finding.seen for finding in lint([one, other]) if finding.code == "L002"]
    assert seen == [
        "The group c is missing for better in other.csv, and there for others; 'c' and 'C' look like one.",
        "The group C is missing for baseline in one.csv, and there for others; 'C' and 'c' look like one.",
    ]
    other = saved(tmp_path / "other.csv", table({"better": REPAIRED}))
    assert not [finding for finding in lint([one, other]) if finding.code == "L002"]


def test_a_label_that_a_method_lacks_is_found(codes):
    rows = [{**row, "label": label} for label in ("no", "yes") for row in table(GOOD)]
    assert "L002" not in codes(rows)
    rows = [row for row in rows if (row["method"], row["group"], row["label"]) != ("better", "b", "yes")]
    seen = [finding.seen for finding in codes(rows)["L002"]]
    assert seen[0] == "The cell b / yes is missing for better, and there for others."
    assert "The group b has 600 images for baseline and 300 for better" in seen[1]


def test_groups_with_another_number_of_images_are_found(codes):
    fewer = {"a": 900, "b": 300, "c": 200}
    (finding,) = codes(table({"baseline": UNFAIR}), table({"better": (846, 264, 160)}, fewer))["L002"]
    assert finding.severity == "error"
    assert "The group c has 300 images for baseline and 200 for better" in finding.seen


def test_seeds_that_only_some_methods_have_are_found(codes):
    fewer = {key: right for key, right in GOOD.items() if key != ("better", "3")}
    (finding,) = codes(table(fewer))["L002"]
    assert finding.severity == "warning"
    assert finding.seen == "Seeds that others have are missing for 1 of 2 methods: better has no seed 3."


def test_methods_are_missed_only_in_tables_that_share_some(tmp_path):
    one = saved(tmp_path / "one.csv", table({"baseline": UNFAIR, "better": REPAIRED}))
    other = saved(tmp_path / "other.csv", table({"baseline": UNFAIR}))
    (finding,) = [finding for finding in lint([one, other]) if finding.code == "L002"]
    assert (finding.severity, finding.where) == ("note", "one.csv, other.csv")
    assert finding.seen == "better is in one of the two tables only, and baseline in both."
    other = saved(tmp_path / "other.csv", table({"another": UNFAIR}))
    assert not [finding for finding in lint([one, other]) if finding.code == "L002"]


def test_a_group_that_is_in_val_alone_is_found(codes):
    val = table({"m": (855, 240, 225)}, part="val")
    test = table({"m": (850, 230)}, {"a": 900, "b": 300}, part="test")
    (finding,) = codes(val, test)["L002"]
    assert finding.seen == "c is in no row of test, and in rows of val."


@pytest.mark.parametrize(
    ("parts", "compared"),
    [
        (("train", "val", "test"), "test"),
        (("val", "train"), "val"),
        (("train",), "train"),
        (("val", "ood"), "val, ood"),
    ],
)
def test_what_is_compared_is_test_or_else_val_or_else_train(codes, parts, compared):
    rights = {part: (855, 240, 225 - 9 * place) for place, part in enumerate(parts)}  # or they were the same numbers
    rows = [row for part in parts for row in table({"m": rights[part]}, {"a": 900, "b": 300, "c": 300}, part=part)]
    few = [{**row, "n": "20", "accuracy": 0.9} if row["group"] == "c" else row for row in rows]
    assert ", ".join(finding.where for finding in codes(few)["L008"]) == ", ".join(
        f"results.csv ({part})" for part in compared.split(", ")
    )


# ---- L003


def test_validation_that_is_called_test_is_found_in_a_table_and_between_tables(codes, tmp_path):
    (finding,) = codes(table(GOOD, part="test"), table(GOOD, part="validation"))["L003"]
    assert finding.severity == "error"
    assert "the validation numbers in each of 3 groups or cells, for 6 of 6 results" in finding.seen
    paths = [saved(tmp_path / name, table({"m": UNFAIR})) for name in ("my_results.csv", "results_val.csv")]
    assert "L003" in {finding.code for finding in lint(paths)}


def test_other_numbers_on_as_many_images_are_in_order(codes):
    other = {key: np.add(right, (3, -2, 1)) for key, right in GOOD.items()}
    assert "L003" not in codes(table(GOOD, part="test"), table(other, part="val"))


def test_numbers_that_chance_makes_equal_are_no_sign(codes):
    few = {"a": 5, "b": 5}
    assert "L003" not in codes(table({"m": (5, 4)}, few, part="test"), table({"m": (5, 4)}, few, part="val"))
    other = {"a": 500, "b": 500}  # one part has another number of images: the same rates, but not the same images
    same = table({"m": (400, 425)}, other, part="test"), table({"m": (800, 850)}, {"a": 1000, "b": 1000}, part="val")
    assert "L003" not in codes(*same)


# ---- L004


def epochs(test, chosen, val=None, method="m", **more):
    """Rows of several epochs; test and val are how many of 900 images of group a were right, in each epoch."""
    for part, rights in (("test", test), ("val", val or [])):
        for epoch, right in enumerate(rights, 1):
            rows = table({method: (right, 240, 225)}, part=part, epoch=epoch, selected_epoch=chosen, **more)
            yield from rows


def test_an_epoch_that_was_chosen_on_test_is_found(codes):
    test, val = [800, 810, 840, 805, 820], [790, 840, 800, 815, 830]
    (finding,) = codes(epochs(test, 3, val))["L004"]
    assert "best on test, and not the best on val: m (overall accuracy of 5 epochs" in finding.seen
    assert (finding.severity, "in 80 of 100 cases" in finding.seen) == ("note", True)  # by any of four measures
    for seeds, severity, chance in (("12", "warning", "in 16 of 100"), ("1234", "error", "in 1 of 156 cases")):
        (finding,) = codes({**row, "seed": seed} for seed in seeds for row in epochs(test, 3, val))["L004"]
        assert finding.severity == severity
        assert f"in each of {len(seeds)} runs" in finding.seen
        assert chance in finding.seen


def test_an_epoch_that_was_chosen_on_val_is_in_order(codes):
    test, val = [800, 810, 840, 805, 820], [790, 840, 800, 815, 830]
    assert "L004" not in codes(epochs(test, 2, val))
    assert "L004" not in codes(epochs(test, 2, test))  # best on both is no sign, and second best on both neither
    assert "L004" not in codes(epochs(test, 3, test))


def test_without_val_the_best_on_test_is_a_note_and_over_many_runs_a_warning(codes):
    test = [800, 810, 840, 805, 820]
    for seeds, severity in (("1", "note"), ("123", "warning")):
        (finding,) = codes({**row, "seed": seed} for seed in seeds for row in epochs(test, 3))["L004"]
        assert finding.severity == severity
        assert "best on test, and no val is shown" in finding.seen
    assert "L004" not in codes({**row, "seed": seed} for seed in "12" for row in epochs(test, 2 + (seed == "2")))


def test_of_several_epochs_the_chosen_one_is_compared_and_without_one_the_last(codes):
    worst = [225, 228, 222]
    rows = [
        {**row, "epoch": epoch}
        for epoch, right in enumerate(worst, 1)
        for row in table({"baseline": UNFAIR, "m": (810, 240, right)})
    ]
    assert "m (gap 0.200 to 0.160, best group 0.950 to 0.900, worst 0.750 to 0.740)" in codes(rows)["L006"][0].seen
    assert "worst 0.750 to 0.750)" in codes({**row, "selected_epoch": 1} for row in rows)["L006"][0].seen
    assert "L006" not in codes({**row, "selected": row["epoch"] == 2} for row in rows)


def test_a_setting_that_was_chosen_on_test_is_found_by_a_column_or_by_another_table(codes, tmp_path):
    rights = {0.1: UNFAIR, 0.01: REPAIRED, 0.001: FAIR}
    tried = [row for rate, right in rights.items() for row in table({"m": right}, learning_rate=rate)]
    flagged = [{**row, "selected": "yes" if row["learning_rate"] == 0.01 else "no"} for row in tried]
    (finding,) = codes(flagged)["L004"]
    assert "m (overall accuracy of 3 settings" in finding.seen
    one = saved(tmp_path / "all.csv", tried)
    for right, found in ((REPAIRED, "is the best on test, and no val"), (UNFAIR, None)):
        other = saved(tmp_path / "paper.csv", table({"m": right}))
        seen = [finding.seen for finding in lint([one, other]) if finding.code == "L004"]
        assert (len(seen) == 1 and found in seen[0]) if found else not seen
    (finding,) = codes(tried)["L004"]
    assert (finding.severity, finding.seen) == (
        "note", "Nothing but test is shown of several settings: m (3 settings)."
    )  # fmt: skip


def test_a_table_that_says_it_selected_on_test_is_taken_at_its_word(codes):
    (finding,) = codes(table(GOOD, selected_on="Test accuracy"))["L004"]
    assert finding.severity == "error"
    assert "selected by 'Test accuracy'" in finding.seen
    assert "L004" not in codes(table(GOOD, selected_on="val; the latest"))


def test_methods_that_were_selected_by_different_rules_are_found(codes):
    one, other = table({"baseline": UNFAIR}, select="last"), table({"better": REPAIRED}, select="worst group of val")
    (finding,) = codes(one, other)["L004"]
    assert finding.severity == "warning"
    assert finding.seen == (
        "Methods were selected by different rules: baseline by 'last', better by 'worst group of val'."
    )


# ---- L005


def test_a_baseline_that_is_not_unfair_is_found(codes):
    (finding,) = codes(table({"baseline": (812, 268, 266), "better": (810, 270, 270)}))["L005"]
    assert finding.severity == "warning"
    assert "The gap of the baseline baseline, 0.016 between c and a, is not larger than chance" in finding.seen


def test_a_baseline_that_is_unfair_is_in_order(codes):
    assert "L005" not in codes(table({"baseline": UNFAIR}))
    two = {"a": 900, "b": 300}
    assert "L005" in codes(table({"baseline": (811, 271)}, two))
    assert "L005" not in codes(table({"baseline": (855, 240)}, two))


def test_the_baseline_is_the_named_one_or_known_or_the_first(codes):
    found = codes(table({"other": UNFAIR, "Vanilla": FAIR}))
    assert "the baseline Vanilla" in found["L005"][0].seen
    assert "L005" not in codes(table({"other": UNFAIR, "Vanilla": FAIR}), baseline="OTHER")
    assert "L005" not in codes(table({"other": UNFAIR, "fair": FAIR}))
    assert "the baseline ERM," in codes(table({"group-dro": UNFAIR, "ERM": FAIR}))["L005"][0].seen
    with pytest.raises(UserError, match=r"Unknown baseline among the methods 'othr'; did you mean 'other'\?"):
        codes(table({"other": UNFAIR, "Vanilla": FAIR}), baseline="othr")


def test_a_baseline_that_is_unfair_within_a_label_alone_is_unfair(codes):
    def labelled(no, yes):
        return [{**row, "label": label} for label, right in (("no", no), ("yes", yes)) for row in table({"m": right})]

    opposed = labelled((855, 255, 255), (765, 285, 285))  # 95 and 85 %, 85 and 95 %: 90 % of each group
    assert "L005" not in codes(opposed)
    (finding,) = codes(labelled(FAIR, FAIR))["L005"]
    assert "nor is it within any label" in finding.seen


# ---- L006


def test_levelling_down_is_found(codes):
    (finding,) = codes(table({"baseline": UNFAIR, "worse": (765, 240, 225)}))["L006"]
    assert finding.severity == "warning"
    assert "worse (gap 0.200 to 0.100, best group 0.950 to 0.850, worst 0.750 to 0.750)" in finding.seen


def test_a_gap_that_is_smaller_because_the_worst_gained_is_in_order(codes):
    assert "L006" not in codes(table({"baseline": UNFAIR, "better": (765, 264, 264)}))
    assert "L006" not in codes(table({"baseline": UNFAIR, "worse": (765, 180, 150)}))  # the gap is no smaller


# ---- L007


def test_a_single_run_is_found_and_several_seeds_are_not(codes):
    (finding,) = codes(table({"baseline": UNFAIR, "better": REPAIRED}))["L007"]
    assert "a single run, as far as is told, of 2 of 2 methods: baseline, better" in finding.seen
    assert "L007" not in codes(table(GOOD))
    assert "L007" not in codes(table({"baseline": UNFAIR, "better": REPAIRED}, seeds=5))
    assert "L007" not in codes(table({"baseline": UNFAIR, "better": REPAIRED}, std=0.01))


def test_a_difference_that_other_images_could_turn_round_is_found(codes):
    near = {key: (855, 240, 228) if key[0] == "better" else right for key, right in GOOD.items()}
    (finding,) = codes(table(near))["L007"]
    assert finding.severity == "warning"
    assert "better has the best worst group, c with 0.760" in finding.seen
    assert "baseline (0.750, margin 0.069); the baseline is one of them" in finding.seen
    third = {("third", seed): (846, 263, 263) for seed in "123"}
    (finding,) = codes(table(GOOD | third))["L007"]
    assert finding.severity == "note"  # better than the baseline, but not than another
    assert "third (0.877" in finding.seen


def test_a_difference_that_other_seeds_could_turn_round_is_found(codes):
    wobbly = {(name, seed): np.add(right, (0, 0, 0 if name == "baseline" else {"1": -30, "2": 0, "3": 20}[seed]))
              for (name, seed), right in GOOD.items()}  # fmt: skip
    (finding,) = codes(table(wobbly))["L007"]
    assert "baseline (0.750, margin 0.2" in finding.seen
    spread = {"baseline": UNFAIR, "better": REPAIRED}
    assert "L007" not in codes(table(spread, seeds=3, std=0.01))
    assert "margin 0.3" in codes(table(spread, seeds=3, std=0.1))["L007"][0].seen


# ---- L008


def test_groups_with_few_images_are_found(codes):
    few = {"a": 900, "b": 29, "c": 30}
    (finding,) = codes(table({"m": (855, 20, 20)}, few))["L008"]
    assert finding.seen == "Fewer than 30 images are in 1 of 3 groups: b (29)."
    assert "L008" not in codes(table({"m": (855, 20, 20)}, {"a": 900, "b": 30, "c": 30}))


# ---- L009


def test_a_rate_that_is_of_no_whole_number_of_images_is_found(codes):
    rows = list(table(GOOD))
    rows[4]["accuracy"] = 0.8817
    (finding,) = codes(rows)["L009"]
    assert finding.severity == "error"
    assert "1 of 18 rates are of no whole number of images: Row 6 of results.csv (better, b)" in finding.seen
    assert "says 0.8817 of 300, which would be 264.51 images" in finding.seen


@pytest.mark.parametrize(
    "rate", ["0.67", "0.66", "0.667", "0.666", "0.6666666666666666", "0.66666669", "1", "0", "0.7"]
)
def test_rates_that_are_rounded_or_cut_off_are_in_order(codes, rate):
    rows = [{**row, "accuracy": rate} for row in table({"m": (2, 2, 2)}, {"a": 3, "b": 6, "c": 9})]
    assert "L009" not in codes(rows)


@pytest.mark.parametrize("rate", ["0.64", "0.71", "0.6654", "66.5%"])
def test_rates_that_only_look_like_rounded_ones_are_found(codes, rate):
    rows = [{**row, "accuracy": rate} for row in table({"m": (2, 2, 2)}, {"a": 3, "b": 6, "c": 9})]
    assert "L009" in codes(rows)


def test_means_over_runs_are_told_apart_from_errors(codes):
    means = [{**row, "accuracy": row["accuracy"] + 1 / 3 / row["n"]} for row in table({"m": UNFAIR})]
    for row in means:
        del row["seed"]
    (finding,) = codes(means)["L009"]
    assert finding.severity == "warning"
    assert "means over 3 runs" in finding.seen
    assert "L009" not in codes({**row, "num_seeds": 3} for row in means)
    assert "L009" in codes({**row, "num_seeds": 4} for row in means)
    assert "L009" not in codes({**row, "std": 0.01} for row in means)


def test_every_share_of_whole_images_is_one_however_it_is_rounded():
    generator = np.random.default_rng(0)
    for n in generator.integers(1, 100_000, 300):
        share = generator.integers(0, n + 1) / n
        for digits in range(1, 9):
            assert _whole(Number(float(n), round(share, digits), own=10.0**-digits))


# ---- L010


def overall(rate, n=1500):
    return {"method": "m", "seed": "1", "group": "all", "n": n, "accuracy": rate}


def test_an_overall_rate_that_is_not_the_mean_by_images_is_found(codes):
    (finding,) = codes(table({"m": UNFAIR}), [overall(0.8333)])["L010"]
    assert finding.severity == "error"
    assert "(m, all) says 0.8333, which is their mean without regard to how many images" in finding.seen
    assert "its 3 rows give 0.8800 by their images" in finding.seen
    (finding,) = codes(table({"m": UNFAIR}), [overall(0.91)])["L010"]
    assert "without regard" not in finding.seen


def test_an_overall_rate_that_is_the_mean_by_images_is_in_order(codes):
    for row in (overall(0.88), overall(0.88, n=""), overall("88%"), {**overall(0.88), "group": "Overall"}):
        rows = [{**other, "accuracy": f"{100 * other['accuracy']}%"} for other in table({"m": UNFAIR})]
        assert "L010" not in codes(rows if "%" in str(row["accuracy"]) else table({"m": UNFAIR}), [row])


def test_cells_without_images_do_not_matter_to_the_whole(codes):
    cells = [("a", "no", 100, "0.9000"), ("a", "yes", 0, ""), ("b", "no", 1, 1), ("b", "yes", 50, 0.5)]
    rows = [
        {"method": "m", "group": group, "label": label, "n": n, "accuracy": rate} for group, label, n, rate in cells
    ]
    whole = {"method": "m", "group": "all", "label": "all", "n": 151, "accuracy": 0.7682}
    assert "L010" not in codes(rows, [whole])
    assert "its 3 rows give 0.7682" in codes(rows, [{**whole, "accuracy": 0.7615}])["L010"][0].seen


def test_groups_that_overlap_have_too_many_images(codes):
    (finding,) = codes(table({"m": UNFAIR}), [overall(0.88, n=900)])["L010"]
    assert "is of 900 images, and its groups have 1,500 together" in finding.seen


def test_sums_over_one_of_two_columns_are_compared_with_their_groups_alone(codes):
    def row(race, sex, n, right):
        return {"method": "m", "race": race, "sex": sex, "n": n, "accuracy": right / n}

    rows = [row("x", "f", 100, 90), row("x", "m", 200, 150), row("y", "f", 300, 240), row("y", "m", 400, 300)]
    sums = [row("all", "f", 400, 330), row("x", "all", 300, 240), row("all", "all", 1000, 780)]
    assert "L010" not in codes(rows + sums)
    (finding,) = codes([*rows, *sums, row("all", "m", 600, 480)])["L010"]
    assert "1 of 4 numbers" in finding.seen
    assert "(m, all, m) says" in finding.seen


# ---- what was not checked


def test_what_could_not_be_checked_is_said(tmp_path):
    rows = [{"method": "m", "group": group, "accuracy": rate} for group, rate in (("a", 0.9), ("b", 0.8))]
    (finding,) = lint([saved(tmp_path / "bare.csv", rows)])
    assert (finding.code, finding.severity) == ("L000", "note")
    for words in ("L001, L005, L007 to L010 where the number", "L003 without rows of val", "L004 without", "L006 and"):
        assert words in finding.seen
    half = [{**row, "n": 100 * (row["group"] == "a") or ""} for row in rows]
    assert "the number of images" in lint([saved(tmp_path / "half.csv", half)])[-1].seen
    full = [*table(GOOD, part="test", select="val"), *table(dict.fromkeys(GOOD, FAIR), part="val", select="val")]
    full += [{**overall(0.88), "method": "baseline", "part": "test", "select": "val"}]
    assert "L000" not in {finding.code for finding in lint([saved(tmp_path / "full.csv", full)])}


# ---- reading


def test_columns_are_found_by_their_usual_names_in_any_spelling(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("Model\tRun\tSplit\tSkin tone\tSEX\tNum images\tError-rate\nm\t7\tDev\tdark\tf\t200\t12.5\n")
    (result,) = read_results([path])
    assert (result.method, result.seed, result.part) == ("m", "7", "val")
    (key, number), = result.numbers.items()  # fmt: skip
    assert (str(key), number.n, number.rate, number.unit) == ("dark, f", 200, 0.875, 0.001)


def test_columns_can_be_named(tmp_path):
    rows = [{"who": "m", "where": group, "top1": 0.9, "accuracy": 0.5} for group in "ab"]
    path = saved(tmp_path / "t.csv", rows)
    results = read_results([path], {"method": "who", "group": ["where"], "rate": "top1"})
    assert {name: number.rate for name, number in results[0].groups.items()} == {"a": 0.9, "b": 0.9}


def test_a_metric_is_taken_out_of_a_table_of_several(tmp_path):
    rows = [
        {"method": "m", "group": group, "metric": metric, "value": value}
        for group in "ab"
        for metric, value in (("loss", 3.2), ("Accuracy", 0.9), ("error_rate", 0.2), ("gap", -0.1))
    ]
    path = saved(tmp_path / "t.csv", rows)
    assert read_results([path])[0].groups["a"].rate == 0.9
    assert read_results([path], {"rate": "error rate"})[0].groups["a"].rate == 0.8
    with pytest.raises(
        UserError, match=r"Unknown metric of t.csv \(rate=METRIC names one\) 'los'; did you mean 'loss'"
    ):
        read_results([path], {"rate": "los"})


def test_numbers_of_right_images_shares_and_per_cent_are_the_same(tmp_path):
    for column, values in (("correct", ("9", "8")), ("correct", ("0.9", "0.8")), ("acc", ("90", "80.0")),
                           ("acc", ("90 %", "80%")), ("error", ("0.1", "0.2"))):  # fmt: skip
        rows = [
            {"method": "m", "group": group, "n": 10, column: value} for group, value in zip("ab", values, strict=True)
        ]
        (result,) = read_results([saved(tmp_path / "t.csv", rows)])
        assert [number.rate for number in result.groups.values()] == pytest.approx([0.9, 0.8]), column


def test_a_table_without_a_column_of_methods_is_one_that_is_called_like_its_file(tmp_path):
    rows = [{"group": group, "n": 10, "correct": right} for group, right in (("a", 10), ("b", 0))]
    (result,) = read_results([saved(tmp_path / "ours_val.csv", rows)])
    assert (result.method, result.part) == ("ours_val", "val")
    assert [number.rate for number in result.groups.values()] == [1, 0]


def test_parquet_is_read_like_text(tmp_path):
    columns = {name: [row[name] for row in table(GOOD)] for name in ("method", "seed", "group", "n", "accuracy")}
    for kind in (pa.float64(), pa.float32()):
        rates = pa.array(columns["accuracy"], kind)
        pyarrow.parquet.write_table(pa.table({**columns, "accuracy": rates}), tmp_path / "t.parquet")
        assert {finding.code for finding in lint([tmp_path / "t.parquet"])} == {"L000"}


def test_rows_of_means_and_gaps_are_about_no_group(tmp_path):
    rows = [*table({"m": UNFAIR}), {**overall(-0.1), "group": "Gap"}, {**overall(0.8), "group": "average"}]
    rows.append({**overall(0.8), "group": "a", "label": "macro avg"})
    rows = [{"label": "all", "sex": "f", **row} for row in rows] + [{**overall(0.7), "label": "all", "sex": "mean"}]
    path = saved(tmp_path / "t.csv", rows)
    (result,) = read_results([path], {"group": ["group", "sex"]})
    assert list(result.groups) == ["a, f", "b, f", "c, f"]
    assert list(result.numbers) == list(result.cells)


def test_settings_are_the_fewest_columns_that_tell_rows_apart(tmp_path):
    rows = [
        {**row, "seconds": 10 * rate, "backbone": "small", "weight": rate, "loss": 0.1 * place}
        for rate in (1, 2)
        for place, row in enumerate(table({"m": UNFAIR}))
    ]
    path = saved(tmp_path / "t.csv", rows)
    assert [result.settings for result in read_results([path])] == ["seconds=10", "seconds=20"]
    results = read_results([path], {"settings": ["weight", "backbone"]})
    assert [result.name for result in results] == ["m [weight=1]", "m [weight=2]"]


def test_two_tables_of_the_same_name_are_told_apart_and_doubled_rows_are_not(tmp_path):
    (tmp_path / "x").mkdir()
    paths = [saved(tmp_path / "t.csv", table({"m": UNFAIR})), saved(tmp_path / "x" / "t.csv", table({"m": FAIR}))]
    assert {result.table for result in read_results(paths)} == {str(path) for path in paths}
    with pytest.raises(UserError, match=r"t\.csv is named twice"):
        read_results([paths[0], paths[0]])


ROW = {"method": "m", "group": "a", "n": 10, "accuracy": 0.9}
CORRECT = {"method": "m", "group": "a", "n": 10, "correct": 9}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"method": "m", "n": 10, "accuracy": 0.9}], "t.csv has no column of groups: say which one it is (group="),
        ([{"method": "m", "group": "a", "n": 10}], "t.csv has no column of rates: say which one it is (rate=COLUMN)"),
        ([{"image": "1.jpg", "group": "a", "label": 1, "prediction": 0}], "predictions with a row for each image have"),
        ([{**ROW, "group": ""}], "Row 2 of t.csv has no group: name a group in every row"),
        ([{**ROW, "method": ""}], "Row 2 of t.csv has no method: write one in every row"),
        ([{**ROW, "label": "x"}, {**ROW, "label": ""}], "Row 3 of t.csv has no label"),
        ([{**ROW, "n": 10.5}], "Row 2 of t.csv has the n 10.5: it must be a whole number from 0"),
        ([{**ROW, "n": -1}], "Row 2 of t.csv has the n -1: it must be"),
        ([{**ROW, "n": "inf"}], "Row 2 of t.csv has the n inf: it must be"),
        ([{**ROW, "n": "ten"}], "Row 2 of t.csv has the n 'ten', which is no number"),
        ([{**ROW, "accuracy": "0.9 ± 0.1"}], "which is no number"),
        ([ROW, {**ROW, "group": "b", "accuracy": -0.1}], "Row 3 of t.csv has the accuracy -0.1: a rate is a share"),
        ([{**ROW, "accuracy": 101}], "Row 2 of t.csv has the accuracy 101: a rate is a share"),
        ([ROW, {**ROW, "group": "b"}, {**ROW, "group": "c", "accuracy": 1.2}], "Row 4 of t.csv has the accuracy 1.2,"),
        ([CORRECT, {**CORRECT, "correct": 11}], "Row 3 of t.csv has the correct 11 and 10 images"),
        ([{"method": "m", "group": "a", "correct": 11}], "has the correct 11 and no number of images"),
        ([ROW, ROW], "Row 2 of t.csv and row 3 are both of m and a, and nothing tells them apart"),
        ([{**ROW, "group": "all"}], "t.csv has no row of a single group"),
        ([{**ROW, "group": "gap"}], "t.csv has no row of a single group"),
        ([{**ROW, "metric": "loss"}], "Unknown metric of t.csv (rate=METRIC names one) 'accuracy'"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_results_is_refused_in_one_sentence(tmp_path, rows, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        lint([saved(tmp_path / "t.csv", rows)])
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_what_is_asked_for_wrongly_is_refused(tmp_path):
    path = saved(tmp_path / "t.csv", table({"m": UNFAIR}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "header.csv").write_text("method,group,accuracy\n")
    for tables, columns, words in (
        ([], {}, "There is nothing to look at"),
        ([tmp_path / "no.csv"], {}, "There is no table"),
        ([tmp_path / "empty"], {}, "is no run and holds none"),
        ([tmp_path / "header.csv"], {}, "header.csv has 0 rows"),
        ([path], {"rates": "accuracy"}, "Unknown role of a column 'rates'; did you mean 'rate'"),
        ([path], {"rate": "acuracy"}, "Unknown column of t.csv 'acuracy'; did you mean 'accuracy'"),
        ([path], {"n": ["n", "seed"]}, "The n of a row is one column, not 2"),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as error:
            lint(tables, columns)
        assert str(error.value).endswith(".")


# ---- runs


def run(folder, method="erm", seed=1, test=((400, 100), (300, 200)), val=((40, 10), (31, 19)), **settings):
    """A folder as a run leaves it, as far as it is read: two groups, one label each way; (right, wrong) by group."""
    folder.mkdir(parents=True)
    config = {"dataset": "drawn", "method": method, "seed": seed, "select": "last", **settings}
    lines = [f"{name} = {json.dumps(value)}" for name, value in config.items()]
    folder.joinpath("config.toml").write_text("\n".join([*lines, "[data]", 'fingerprint = "0123456789abcdef"']))

    def part(counts):
        return {"counts": [[[right, wrong], [wrong, right]] for right, wrong in counts]}

    content = {
        "id": folder.name,
        "task": {"group_names": ["x", "y"], "class_names": ["no", "yes"]},
        "train_cells": [[900, 100], [900, 100]],
        "val": part(val),
        "test": part(test),
    }
    folder.joinpath("metrics.json").write_text(json.dumps(content))
    return folder


def test_a_folder_of_runs_is_a_table(tmp_path):
    for seed in (1, 2):
        run(tmp_path / "runs" / f"a{seed}", seed=seed)
        run(tmp_path / "runs" / f"b{seed}", "group_dro", seed, ((350, 150), (300, 200)), ((30, 20), (35, 15)))
    run(tmp_path / "runs" / ".c.partial", "flac")
    results = read_results([tmp_path / "runs"])
    assert len(results) == 8
    assert {(result.dataset, result.method, result.part) for result in results} == {
        ("drawn 01234567", method, part) for method in ("erm", "group_dro") for part in ("val", "test")
    }
    first = next(result for result in results if result.part == "test")
    assert {name: (number.n, number.rate) for name, number in first.groups.items()} == {
        "x": (1000, 0.8),
        "y": (1000, 0.6),
    }
    assert first.groups["x"].n_train == 1800
    found = lint([tmp_path / "runs"])
    assert [finding.code for finding in found] == ["L006", "L007", "L000"]
    assert "L004" not in found[-1].seen  # a run's configuration says how it was selected


def test_mistakes_are_found_in_runs(tmp_path):
    run(tmp_path / "a", val=((400, 100), (300, 200)))
    run(tmp_path / "b", "group_dro", select="worst_group_accuracy")
    codes = {finding.code: finding for finding in lint([tmp_path])}
    assert "The test numbers of erm are the validation numbers in each of 4 groups or cells" in codes["L003"].seen
    assert "erm by 'last on val', group_dro by 'worst_group_accuracy on val'" in codes["L004"].seen


def test_runs_with_other_settings_are_other_methods_and_a_copy_is_none(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", precision="fp32")
    run(tmp_path / "copies" / "a")
    names = [result.name for result in read_results([tmp_path]) if result.part == "test"]
    assert sorted(names) == ["erm [precision=]", "erm [precision=fp32]"]


def test_a_group_of_a_run_may_have_any_name(tmp_path):
    path = run(tmp_path / "a") / "metrics.json"
    path.write_text(path.read_text().replace('"x", "y"', '"all", "best"').replace('"no", "yes"', '"mean", "total"'))
    results = read_results([tmp_path])
    assert [list(result.groups) for result in results] == [["all", "best"]] * 2


def test_a_damaged_run_is_refused_in_one_sentence(tmp_path):
    path = run(tmp_path / "a") / "metrics.json"
    for content in ("{", "[]", '{"id": 1}', '{"id": 1, "task": {"group_names": 3, "class_names": []}}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"metrics\.json is damaged \(.*\): copy the run again"):
            lint([tmp_path])


# ---- findings


def test_a_finding_says_what_was_seen_why_it_matters_and_what_to_do():
    finding = Finding("L005", "warning", "t.csv", "The gap is small.")
    assert finding.as_dict() == {
        "code": "L005", "severity": "warning", "title": "the baseline is not unfair", "where": "t.csv",
        "seen": "The gap is small.", "why": CODES["L005"].why, "advice": CODES["L005"].advice,
    }  # fmt: skip
    assert finding.text.startswith("t.csv: The gap is small. There is nothing to repair")
    assert list(CODES) == [f"L{number:03}" for number in range(11)]
    assert all(text.endswith(".") for code in CODES.values() for text in code[1:])


def test_errors_come_first_and_no_name_belongs_to_two_roles(codes):
    near = {"baseline": (811, 272, 269), "b": (812, 273, 268)}
    assert list(codes(table(near, part="val"), table(near))) == ["L003", "L005", "L007"]
    few = {"a": 900, "b": 300, "c": 20}
    by_chance = codes(table({"m": (805, 270, 18)}, few))
    assert [(code, one.severity) for code, (one,) in by_chance.items()] == [
        ("L005", "warning"), ("L008", "warning"), ("L001", "note")
    ]  # fmt: skip
    names = [name for names in ROLES.values() for name in names]
    assert len(names) == len(set(names))
