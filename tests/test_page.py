"""The page: what it says, that it says so of hostile data too, and that it opens and draws without a network."""

import itertools
import json
import math
import re
import shlex

import numpy as np
import pytest
import torch

import evenlens.datasets
from evenlens import config as configuration
from evenlens import metrics
from evenlens import run as running
from evenlens.data import source
from evenlens.data.tables import Column, Table
from evenlens.errors import UserError
from evenlens.report import bundle, figures, images, page, summary, verdict
from evenlens.run import Run
from tests import fake
from tests.pages import Tags, check_drawn

PLAIN, OTHER, THIRD = "erm", "group_dro", "upweighting"
CLASSES = ("<script>window.hacked=1</script>", 'it\'s & "that"')
GROUPS = ('</script><script>window.hacked=2</script>"', "{{ 7 * 7 }} ' \u2028 <img src=x onerror=window.hacked=3>")
FILE = '"><img src=x onerror=window.hacked=4>.jpg'


class Hostile(fake.Tiny):
    """The tiny data set, in which every name tries to leave its place."""

    title = "<b>Hostile</b>"
    homepage = "javascript:window.hacked=5"

    def table(self, skip_unreadable):
        self.notes.append("<script>window.hacked=6</script>")
        columns = {"place": Column(CLASSES, self.place), "tint": Column(GROUPS, self.tint)}
        return Table([f"{row:05d}{FILE}" for row in range(len(self.place))], columns)


@pytest.fixture
def hostile(monkeypatch):
    monkeypatch.setattr(evenlens.datasets, "get", lambda name, *root: Hostile)


EVEN = {"num": 1500, "correlation": 0.0}  # every cell has test images enough


def make(runs, method=PLAIN, seed=1, wrong=0.2, **options):
    """Write a run's folder without training: `wrong` is the share of errors, for all groups or for each."""
    config = configuration.make_config("tiny", method, {"seed": seed, **{f"data.{k}": v for k, v in options.items()}})
    data = source.resolve("tiny", evenlens.datasets.get("tiny"), config.data)
    loaded = running.load_data(config.model_copy(update={"data": data}))
    config = running.pin(config.model_copy(update={"data": data}), loaded.splits)
    folder = running.folder_of(config, runs)
    folder.mkdir(parents=True)
    test, cells = loaded.splits.test, loaded.splits.train.cell_counts().numpy()
    logits = guess(test, wrong, seed)
    counts = running.counts_of(logits, test)
    names = {*summary.SHOWN, "accuracy"}
    values = metrics.evaluate(counts, names, cells)
    content = {
        "format": running.FORMAT,
        "version": "0",
        "id": config.identity(),
        "task": loaded.splits.task.as_dict(),
        "selected_epoch": 2,
        "train_cells": cells.tolist(),
        "notes": loaded.notes,
        "test": {
            "num_images": len(test),
            "counts": counts.tolist(),
            "metrics": {name: [None if math.isnan(value) else value] for name, value in values.items()},
        },
    }
    environment = {"versions": {"evenlens": "0"}, "device": "<i>CPU</i>", "precision": "fp32", "seconds_training": 1.5}
    log = [{"epoch": k, "loss": 1 / k, "val_unbiased_accuracy": 0.5 + k / 10, "seconds": 0.5} for k in (1, 2, 3)]
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (folder / "config.toml").write_text(configuration.to_toml(config))
    running.write_predictions(folder / "predictions.parquet", {"test": (test, logits)})
    return Run.open(folder)


def guess(part, wrong, seed):
    """Logits that are wrong for a share of each group."""
    generator = np.random.default_rng(seed)
    label, share = part.label.numpy(), np.broadcast_to(wrong, part.task.num_groups)[part.group.numpy()]
    change = np.where(generator.random(len(part)) < share, 1, 0)
    return torch.nn.functional.one_hot(torch.from_numpy((label + change) % part.task.num_classes)).float()


def written(runs, tmp_path, **more):
    return Tags(page.write(runs, tmp_path / "report.html", title="T", **more).read_text(encoding="utf-8"))


# ---- what it says


def test_the_verdict_names_worst_group_gap_and_the_method_that_closes_it(tmp_path):
    errors = {PLAIN: (0.0, 0.45), OTHER: (0.1, 0.1), THIRD: (0.0, 0.45)}
    runs = [make(tmp_path, method, wrong=wrong, **EVEN) for method, wrong in errors.items()]
    words = written(runs, tmp_path).words
    assert "1 of 2 methods makes the gap between groups clearly smaller than ERM (A) does: Group DRO (B)." in words
    assert "and “tint 1” worst" in words
    assert "The two intervals do not overlap." in words
    assert "1 seed a method" in words
    assert re.search(r"Measured on \d+ test images", words)


def test_methods_that_predict_the_same_are_not_called_better(tmp_path):
    runs = [make(tmp_path, wrong=0.2, **EVEN), make(tmp_path, OTHER, wrong=0.2, **EVEN)]
    words = written(runs, tmp_path).words
    assert "No method makes the gap between groups clearly smaller than ERM (A) does." in words
    assert "No clear difference in the gap; no clear cost in accuracy." in words
    rows = summary.summarise(runs)
    assert verdict.change("accuracy", *rows)[:3] == (0, 0, 0)


def test_a_change_is_the_difference_of_the_means_and_its_interval_holds_it(tmp_path):
    few = [make(tmp_path, wrong=0.1, seed=seed, **EVEN) for seed in (1, 2)]
    many = [make(tmp_path, OTHER, wrong=(0.3, 0.4), seed=seed, **EVEN) for seed in (1, 2, 3)]
    before, after = (next(r for r in summary.summarise([*few, *many]) if r.method == m) for m in (PLAIN, OTHER))
    for name in ("accuracy", "bias_conflict_accuracy", "equalized_odds_difference"):
        changed = verdict.change(name, before, after)
        assert changed.value == pytest.approx(after.numbers[name].value - before.numbers[name].value)
        assert changed.low < changed.value < changed.high
    [comparison] = verdict.compare([before, after], before, "equalized_odds_difference", "worst_cell_accuracy")
    assert comparison.changes["accuracy"].sign == -1
    assert comparison.changes["accuracy"].seeds == 2


def test_a_change_is_not_clear_where_a_seed_disagrees():
    assert verdict.Change(-0.2, -0.3, -0.1, 2, 2).sign == -1
    assert verdict.Change(-0.2, -0.3, -0.1, 1, 2).sign == 0
    assert verdict.Change(-0.2, -0.3, 0.1, 2, 2).sign == 0
    assert verdict.Change(math.nan, math.nan, math.nan, 0, 0).sign == 0


def test_a_gap_that_closes_because_all_are_failed_is_called_that(tmp_path):
    runs = [make(tmp_path, wrong=(0.0, 0.45), **EVEN), make(tmp_path, OTHER, wrong=0.75, **EVEN)]
    words = written(runs, tmp_path).words
    assert "by serving some worse, not by serving others better" in words
    assert "clearly more often right than always giving the same answer" in words
    assert "Not clearly better than always answering" in words


def test_a_single_run_is_not_compared(tmp_path):
    words = written([make(tmp_path)], tmp_path).words
    assert "One method was measured, ERM (A), so nothing is compared." in words
    assert "another seed could change the order" in words
    assert "Accuracy against fairness" not in words


def test_an_undefined_metric_says_so_and_small_groups_are_listed(tmp_path):
    runs = [make(tmp_path, method, num_classes=9, num_groups=14, num=900) for method in (PLAIN, OTHER)]
    tags = written(runs, tmp_path)
    assert "undefined" in tags.words
    assert not re.search(r"\bnan\b", tags.words)
    assert "“undefined” is not 0" in tags.words
    assert re.search(r"Groups with fewer than 20 test images. tint \d+ \(\d+\)", tags.words)
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["rows"][0]["numbers"]["worst_cell_accuracy"]["value"] is None


def test_the_pareto_front_is_what_no_other_beats():
    points = [(0.9, 0.3), (0.8, 0.1), (0.85, 0.3), (0.7, 0.2), (0.95, 0.5), (math.nan, 0.0), (0.8, 0.1)]
    assert figures.pareto_front(points) == [1, 6, 0, 4]
    assert figures.pareto_front([]) == []
    assert figures.pareto_front([(0.5, math.nan)]) == []


def test_the_json_beside_the_page_holds_the_rows(tmp_path):
    runs = [make(tmp_path, wrong=(0.0, 0.4), seed=seed) for seed in (1, 2)] + [make(tmp_path, OTHER)]
    rows = summary.sort_rows(summary.summarise(runs), PLAIN)
    page.write(runs, tmp_path / "report.html", title="T", rows=rows, command="evenlens demo")
    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert [row["method"] for row in read["rows"]] == [row.method for row in rows]
    for found, row in zip(read["rows"], rows, strict=True):
        assert found["counts"] == row.counts.tolist()
        assert [run["id"] for run in found["runs"]] == [run.metrics["id"] for run in row.runs]
        for name, number in row.numbers.items():
            assert found["numbers"][name]["value"] == pytest.approx(number.value, nan_ok=True)
            assert found["numbers"][name]["seeds"] == list(number.seeds)
    assert read["command"] == "evenlens demo"
    assert read["comparisons"][0]["changes"]["accuracy"]["seeds"] == 1
    assert len(read["rows"][0]["groups"]) == 2


def test_a_baseline_that_was_not_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="Unknown baseline among the reported methods 'nothing'"):
        page.write([make(tmp_path)], tmp_path / "report.html", title="T", baseline="nothing")
    with pytest.raises(UserError, match="would be overwritten"):
        page.write([make(tmp_path / "b")], tmp_path / "report.json", title="T")


def test_the_named_baseline_is_compared_with_and_comes_first(tmp_path):
    runs = [make(tmp_path, wrong=0.1), make(tmp_path, OTHER, wrong=0.2)]
    assert page.show(summary.summarise(runs), OTHER).rows[0].method == OTHER
    assert page.show(summary.summarise(runs), None).baseline.method == PLAIN


def test_a_page_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("old")
    run = make(tmp_path / "runs")

    def fail(*arguments):
        raise OSError("no")

    monkeypatch.setattr(page, "render", fail)
    with pytest.raises(OSError, match="no"):
        page.write([run], out, title="T")
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("runs", "cache")] == ["report.html"]


@pytest.mark.parametrize("name", ["plain", "spaces and 'quotes'", "1", "true", "a,b", "5.0", "", "ü ✓ $(x)"])
def test_the_command_of_a_run_makes_that_run(name):
    data = {
        "target": name,
        "sensitive": ("race", "gender"),
        "options": {"label": name, "num": 3},
        "root": "/some where",
    }
    settings = {"weight": 0.00001, "names": [name, "b"], "on": True}
    config = configuration.RunConfig.model_validate(
        {"dataset": "tiny", "method": OTHER, "seed": 3, "options": settings, "data": data, "train": {"epochs": 2}}
    )
    words = shlex.split(page.command_of(config))
    assert words[:6] == ["evenlens", "train", "tiny", OTHER, "--seed", "3"]
    read = configuration.make_config("tiny", OTHER, {"seed": 3, **configuration.parse_overrides(words[6:])})
    assert read == config


# ---- images


def test_wrong_images_are_shown_with_label_prediction_and_file(tmp_path):
    run = make(tmp_path, wrong=(0.0, 0.5))
    [row] = summary.summarise([run])
    [sheet], why = images.sheets([row], 1)
    assert not why
    assert 0 < len(sheet.pictures) <= images.MOST
    test = running.load_data(run.config).splits.test
    for picture in sheet.pictures:
        where = list(test.names).index(picture.name)
        assert test.group[where] == 1
        assert picture.label == test.task.class_names[test.label[where]] != picture.prediction
        assert picture.uri.startswith("data:image/jpeg;base64,")
    [none], _ = images.sheets([row], 0)
    assert not none.pictures
    assert none.said.startswith("No image of “tint 0” is predicted wrong")


def test_the_images_can_be_left_out(tmp_path):
    read = written([make(tmp_path)], tmp_path, pictures=False)
    assert "The images were left out on request." in " ".join(" ".join(read.text).split())
    assert not any(tag == "img" for tag, _ in read.tags)


def test_without_the_data_the_page_says_so(tmp_path, monkeypatch):
    run = make(tmp_path)

    def gone(config):
        raise UserError("Tiny is not at /nowhere.")

    monkeypatch.setattr(running, "load_data", gone)
    tags = written([run], tmp_path)
    assert "The images cannot be shown, as the data are not available here any more: Tiny is not at" in tags.words
    assert "img" not in [tag for tag, _ in tags.tags]


def test_other_images_under_the_same_names_are_not_shown(tmp_path):
    run = make(tmp_path)
    text = (run.folder / "config.toml").read_text()
    (run.folder / "config.toml").write_text(re.sub(r'fingerprint = "\w+"', 'fingerprint = "0000"', text))
    assert "The images cannot be shown" in written([Run.open(run.folder)], tmp_path).words


# ---- hostile names, access


def test_no_name_from_the_data_becomes_markup(tmp_path, hostile):
    runs = [make(tmp_path, wrong=(0.1, 0.4)), make(tmp_path, OTHER)]
    tags = written(runs, tmp_path, about="<script>window.hacked=7</script>", command="<script>")
    assert [attributes for tag, attributes in tags.tags if tag == "script"] == [
        {"type": "application/json", "id": "figures"},
        {},
    ]
    assert not [attributes for _, attributes in tags.tags if "onerror" in attributes]
    assert all(attributes["src"].startswith("data:") for tag, attributes in tags.tags if tag == "img")
    assert not [attributes for tag, attributes in tags.tags if tag == "a" and ":" in attributes["href"]]
    for text in (*CLASSES, GROUPS[0], FILE, Hostile.title, "<script>window.hacked=6</script>"):
        assert text in tags.words


def test_embedded_json_cannot_leave_its_element():
    text = bundle.embed({"</script>": "<!-- & \u2028 \u2029 é"})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"</script>": "<!-- & \u2028 \u2029 é"}


def test_the_page_can_be_read_without_seeing_it(tmp_path):
    runs = [make(tmp_path), make(tmp_path, OTHER)]
    tags = written(runs, tmp_path).tags
    assert ("html", {"lang": "en"}) in tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption")
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")
    charts = [attributes for _, attributes in tags if attributes.get("class") == "chart"]
    assert len(charts) == names.count("figure") > 4
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    aimed = [attributes["href"][1:] for tag, attributes in tags if tag == "a" and attributes["href"].startswith("#")]
    assert set(aimed) <= set(ids)


# ---- in a browser


@pytest.mark.page
def test_a_page_of_hostile_data_draws_asks_for_nothing_and_runs_nothing(tmp_path, hostile, opened):
    runs = [make(tmp_path, wrong=(0.1, 0.4), seed=seed) for seed in (1, 2)] + [make(tmp_path, OTHER)]
    path = page.write(runs, tmp_path / "report.html", title="</title><script>window.hacked=8</script>")
    tab = opened(path)
    assert tab.get_by_role("heading", level=1).is_visible()
    assert tab.get_by_role("heading", name="Finding").is_visible()
    check_drawn(tab, path, 6)
    for mark in tab.locator("#chart-group-accuracy .mark-symbol path").all()[:2]:
        mark.hover()
        tab.locator("#vg-tooltip-element.visible").wait_for()
        assert "window.hacked" in tab.locator("#vg-tooltip-element").inner_text()
    assert tab.locator("#vg-tooltip-element :is(img, script)").count() == 0
    policy = tab.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'sha256-" in policy
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("ul.sheet img").count() > 0
    assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


@pytest.mark.page
def test_the_policy_stops_a_script_that_got_in_all_the_same(tmp_path, opened):
    path = page.write([make(tmp_path)], tmp_path / "report.html", title="T")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<main", "<script>window.hacked=9</script><main", 1), encoding="utf-8")
    tab = opened(path)
    assert tab.evaluate("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


@pytest.mark.page
@pytest.mark.parametrize("width", [1280, 390])
def test_many_classes_and_groups_draw_on_a_screen_and_a_phone(tmp_path, opened, width):
    runs = [make(tmp_path, method, num_classes=9, num_groups=14, num=900) for method in (PLAIN, OTHER)]
    path = page.write(runs, tmp_path / "report.html", title="T")
    assert path.stat().st_size < 2_500_000
    check_drawn(opened(path, width), path, 6)


def test_of_many_names_a_sentence_has_the_first():
    from evenlens.report.wording import listed

    assert listed(["a"]) == "a"
    assert listed([*"abcdefgh"]) == "a, b, c, d, e, f, g and h"
    assert listed([*"abcdefghij"]) == "a, b, c, d, e, f, g and 3 more"


def test_the_baseline_is_plain_training_and_not_what_merely_knows_no_groups():
    from types import SimpleNamespace

    from evenlens.report.verdict import baseline_of

    rows = [SimpleNamespace(method=name, on_photographs=True) for name in ("hinton", "gce", "erm", "flac")]
    assert baseline_of(rows, None).method == "erm"
    assert baseline_of(rows, "flac").method == "flac"
    assert baseline_of(rows[:2], None).method == "hinton"
