"""The smallest network within a bound: what is chosen and what is not, by which images, and what is said of it."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import evenlens.datasets
from evenlens import candidates, compressing, export, measuring, methods, run, workers
from evenlens.candidates import Candidate, Search, choose, judge, judge_both
from evenlens.config import make_config
from evenlens.data.tables import PARTS
from evenlens.errors import UserError
from evenlens.measuring import Latency
from evenlens.metrics import Interval
from evenlens.report import frontier
from evenlens.run_folder import Run
from evenlens.workers import News
from tests import fake
from tests.pages import Tags, check_drawn
from tests.worker import InProcess

DATA = {"train.batch_size": 64, "precision": "fp32", "data.num": 600, "data.correlation": 0.8}
SHORT = {**DATA, "train.epochs": 1, "dense.train.epochs": 4}
WORDS = [f"{key}={value}" for key, value in SHORT.items()]
SPOILT = {**SHORT, "train.learning_rate": 1e-7, "dense.train.learning_rate": 1e-3, "structure": "weights"}
SPARSITIES = (0.5, 0.75)


def config_of(name="magnitude", **settings):
    return make_config("tiny", name, {**SHORT, **settings})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(workers.Engine, "start", lambda engine, store: InProcess(store))
    monkeypatch.setattr(compressing, "SECONDS", 0.05)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the dense run and those of two sparsities, made once."""
    folder = tmp_path_factory.mktemp("made") / "runs"
    get = evenlens.datasets.get
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(folder.parent / "cache"))
        patch.setattr(
            evenlens.datasets, "get", lambda name, root=None: fake.Tiny if name == "tiny" else get(name, root)
        )
        patch.setattr(workers.Engine, "start", lambda engine, store: InProcess(store))
        patch.setattr(compressing, "SECONDS", 0.05)
        found = compressing.search(config_of(), 0.9, "size", SPARSITIES, folder, max_drop=1.0)
    assert found.made == 2
    return folder


def asked(runs, *more, method="magnitude", sparsity="0.5,0.75"):
    return ("compress", "tiny", method, *WORDS, "--runs", runs, "--sparsity", sparsity, "--max-drop", "1", *more)


# ---- what decides, without a run


def interval(value, low=None, high=None, n=100):
    return Interval(value, value if low is None else low, value if high is None else high, n)


def made_up(sparsity, p50=1.0, size=1000, verdict="within", gap=0.01, **more):
    latency = Latency(p50, 2 * p50, 10)
    fields = {"accuracy": interval(0.9, 0.85, 0.95), "worst_group_accuracy": interval(0.8, 0.7, 0.9)}
    return Candidate(sparsity, Path("run"), 100, 90, size, size // 2, latency, **fields, excess=interval(gap, 0, gap),
                     worst="g", verdict=verdict, **more)  # fmt: skip


def found_of(every, chosen, **more):
    dense = replace(made_up(0.0, 4.0, 8000), excess=None, worst="", verdict=None)
    options = {"structure": "channels", "objective": "naive"}
    config = config_of().model_copy(update={"options": options})
    return Search(config, "latency", 0.02, 0.05, 0.95, dense, every, chosen, None, **more)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.0, 0.02, "within"),
        (0.0, 0.0201, "cannot be told"),
        (0.02, 0.05, "cannot be told"),
        (0.0201, 0.05, "not within"),
        (0.0, 0.0, "within"),
        (math.nan, math.nan, "cannot be told"),
    ],
)
def test_a_gap_is_judged_by_its_whole_interval(low, high, verdict):
    assert judge(interval((low + high) / 2, low, high), 0.02) == verdict


def test_the_cheapest_of_those_within_is_chosen_whatever_the_others_cost():
    every = [
        made_up(0.2, 3.0, 10),
        made_up(0.4, 2.0, 30),
        made_up(0.6, 1.0, 5, verdict="cannot be told"),
        made_up(0.8, 0.5, 1, verdict="not within"),
    ]
    assert choose(every, "latency").sparsity == 0.4
    assert choose(every, "bytes").sparsity == 0.2
    assert choose(every[2:], "latency") is None
    assert choose([], "latency") is None
    equal = [made_up(0.2, gap=0.015), made_up(0.4, gap=0.005), made_up(0.6, gap=0.01)]
    assert choose(equal, "latency").sparsity == 0.4


@pytest.mark.parametrize(
    ("verdicts", "outcome", "code"),
    [
        (["within", "not within"], "passed", 0),
        (["not within", "not within"], "failed", 1),
        (["cannot be told", "not within"], "undecided", 3),
        (["cannot be told", "within"], "passed", 0),
    ],
)
def test_the_outcome_is_that_of_a_gate(verdicts, outcome, code):
    every = [made_up(0.2 + number / 10, verdict=verdict) for number, verdict in enumerate(verdicts)]
    found = found_of(every, choose(every, "latency"))
    assert (found.outcome, found.exit_code) == (outcome, code)


def test_what_may_help_is_said_where_nothing_is_within():
    failed = [made_up(0.3, verdict="not within", gap=0.09), made_up(0.6, verdict="not within", gap=0.08)]
    first, second = found_of(failed, None).sentences()
    assert first == (
        "No candidate of 2 is within 0.02: the least worst excess gap is 0.080 (0.000 to 0.080), at sparsity 0.6, "
        "where the accuracy over all images falls by undefined; at most 0.05 is allowed."
    )
    assert "a sparsity below 0.3" in second
    assert "objective=ceag" in second
    assert "validation images" not in second
    unsure = [made_up(0.3, verdict="cannot be told", gap=0.04)]
    assert "more validation images than the 100 here" in found_of(unsure, None).sentences()[1]
    bounded = found_of(failed, None)
    options = {**bounded.config.options, "objective": "ceag"}
    bounded = replace(bounded, config=bounded.config.model_copy(update={"options": options}))
    assert "objective=ceag" not in bounded.sentences()[1]


def test_a_chosen_network_that_is_no_cheaper_than_the_dense_one_is_not_praised():
    slow, fast = made_up(0.3, 4.1), made_up(0.3, 1.0)
    assert "no less than the dense" in found_of([slow], slow).sentences()[0]
    assert "4.0 times less than the dense" in found_of([fast], fast).sentences()[0]


def test_what_is_lost_over_all_is_said_and_bounded():
    """A network that guesses has no group that lost more than the others."""
    fair, little, much = interval(0.01, 0.0, 0.015), interval(0.01, 0.0, 0.02), interval(0.4, 0.35, 0.45)
    assert judge_both(fair, 0.02, little, 0.05) == "within"
    assert judge_both(fair, 0.02, much, 0.05) == "not within"
    assert judge_both(fair, 0.02, interval(0.05, 0.04, 0.06), 0.05) == "cannot be told"
    assert judge_both(interval(0.02, 0.0, 0.05), 0.02, much, 0.05) == "not within"
    guessing = replace(made_up(0.9, gap=0.0), drop=interval(0.4, 0.35, 0.45))
    last = found_of([guessing], guessing).sentences()[-1]
    assert last == ("Its accuracy over all these images falls by 0.400 (0.350 to 0.450); at most 0.05 is allowed.")


# ---- runs


def by_hand(dense, run_, part):
    """The worst excess accuracy gap, written out."""
    before, after = (one.predictions(part) for one in (dense, run_))
    assert (before["file"] == after["file"]).all()
    right = [(each["prediction"] == each["label"]).astype(float) for each in (before, after)]
    overall = right[0].mean() - right[1].mean()
    groups = [after["group"] == g for g in np.unique(after["group"])]
    return max(right[0][mine].mean() - right[1][mine].mean() - overall for mine in groups)


def test_few_images_of_which_none_was_lost_are_no_proof(runs):
    found = compressing.search(config_of(), 0.9, "size", SPARSITIES, runs, max_drop=1.0)
    dense, small = Run.open(found.dense.folder), Run.open(found.candidates[0].folder)
    as_before = dense.predictions("val")["prediction"]
    known = {(dense.folder, "val"): as_before, (small.folder, "val"): as_before}
    judging = compressing._Judging(run.load_data(small.config).splits, dense, 0.001, 1.0, 0.95, known)
    lost = judging._lost(small, "val")
    fewest = int(np.bincount(dense.predictions("val")["group"]).min())
    assert lost["excess"][:3] == (0.0, 0.0, pytest.approx(1 - 0.05 ** (1 / fewest)))
    assert judge_both(lost["excess"], 0.001, lost["drop"], 1.0) == "cannot be told"


def test_candidates_are_measured_against_the_dense_network(runs):
    found = compressing.search(config_of(), 0.9, "latency", SPARSITIES, runs, max_drop=1.0)
    assert found.made == 0
    assert [each.sparsity for each in found.candidates] == list(SPARSITIES)
    dense = Run.open(found.dense.folder)
    for each in found.candidates:
        one = Run.open(each.folder)
        assert one.config.options["sparsity"] == each.sparsity
        assert one.config.options["structure"] == "channels"
        assert each.excess.value == pytest.approx(by_hand(dense, one, "val"))
        right = one.predictions("val")
        right = right["prediction"] == right["label"]
        assert each.accuracy.value == pytest.approx(right.mean())
        assert each.accuracy.n == len(right)
        assert each.excess.low <= each.excess.value <= each.excess.high
        assert each.verdict == "within"
        assert each.latency.p50 > 0
        assert each.drop.value == pytest.approx(found.dense.accuracy.value - each.accuracy.value)
    sizes = [each.bytes for each in (found.dense, *found.candidates)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.5 * sizes[0]
    net = export.deployable(Run.open(found.candidates[0].folder).load())
    assert found.candidates[0].parameters == measuring.count_parameters(net)[0] < found.dense.parameters
    tested, one = found.tested, Run.open(found.chosen.folder)
    assert tested.drop.value == pytest.approx(tested.accuracy["dense"].value - tested.accuracy["chosen"].value)
    assert tested.excess.value == pytest.approx(by_hand(dense, one, "test"))
    assert tested.accuracy["dense"].value == pytest.approx(dense.metrics["test"]["metrics"]["accuracy"][0], abs=1e-6)
    whole = one.metrics["test"]["metrics"]["worst_group_accuracy"]
    shown = tested.worst_group_accuracy["chosen"]
    assert (shown.value, shown.low, shown.high) == pytest.approx(whole, abs=1e-6)


def test_test_images_are_opened_after_the_choice_and_of_the_chosen_alone(runs, monkeypatch):
    seen = []
    predictions, choosing = Run.predictions, choose
    monkeypatch.setattr(
        Run, "predictions", lambda self, part="test": seen.append((part, self.folder.name)) or predictions(self, part)
    )
    monkeypatch.setattr(compressing, "choose", lambda *given: seen.append(("choice", "")) or choosing(*given))
    found = compressing.search(config_of(), 0.9, "size", SPARSITIES, runs, max_drop=1.0)
    parts = [part for part, _ in seen]
    place = parts.index("choice")
    assert "test" not in parts[:place]
    names = {name for part, name in seen[place:] if part == "test"}
    assert names == {found.chosen.folder.name, found.dense.folder.name}
    seen.clear()
    none = compressing.search(config_of(), 0.0, "size", SPARSITIES, runs, max_drop=1.0)
    assert none.tested is None
    assert "test" not in [part for part, _ in seen]


def test_of_single_weights_the_compressed_size_counts(tmp_path):
    found = compressing.search(config_of(structure="weights"), 0.9, "size", (0.5, 0.95), tmp_path, max_drop=1.0)
    assert found.measure == "bytes_gzip"
    first, second = found.candidates
    assert first.bytes == second.bytes == found.dense.bytes
    assert second.bytes_gzip < 0.5 * first.bytes_gzip < 0.5 * found.dense.bytes_gzip
    assert second.parameters_nonzero < 0.2 * first.parameters == 0.2 * second.parameters
    assert found.chosen is second
    assert "gzip" in " ".join(found.notes())


def test_a_dense_network_of_other_data_predicts_these_images(tmp_path):
    other = make_config("tiny", "erm", {**DATA, "train.epochs": 3, "data.num": 500, "data.correlation": 0.7})
    dense = run.train(other, tmp_path / "elsewhere")
    settings = {key: value for key, value in SHORT.items() if not key.startswith("dense.")}
    config = make_config("tiny", "magnitude", {**settings, "dense": str(dense.folder)})
    found = compressing.search(config, 0.9, "size", (0.5,), tmp_path / "runs", max_drop=1.0)
    assert found.dense.folder.resolve() == dense.folder.resolve()
    assert found.dense.accuracy.n == found.candidates[0].accuracy.n != len(dense.predictions("val")["label"])
    splits = run.load_data(config).splits
    logits = run.predict(dense.load(), splits.val.on(splits.val.pixels.device, batch_size=50))
    assert found.dense.accuracy.value == pytest.approx((logits.argmax(1) == splits.val.label).double().mean().item())


def refuse(task, store, watch):
    return News(task.place, "refused", message="it cannot be.")


def test_a_candidate_that_cannot_be_made_is_named_and_the_others_are_judged(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "make_run", refuse)
    found = compressing.search(config_of(), 0.9, "size", (*SPARSITIES, 0.9), runs, max_drop=1.0)
    assert found.failed == {"sparsity 0.9": "it cannot be."}
    assert "Not made: sparsity 0.9: it cannot be." in Tags(frontier.render(found.as_dict())).words
    assert found.chosen.sparsity == 0.75
    with pytest.raises(
        UserError, match=r"No candidate could be made; sparsity 0.5: it starts .* failed: it cannot be\."
    ):
        compressing.search(config_of(), 0.9, "size", SPARSITIES, tmp_path, max_drop=1.0)


def test_the_command_names_what_could_not_be_made(command, runs, monkeypatch):
    monkeypatch.setattr(workers, "make_run", refuse)
    ended = command(*asked(runs, "--max-gap", "0.9", "--target", "size", sparsity="0.5,0.9"))
    assert ended.code == 0, ended
    assert "failed: sparsity 0.9: it cannot be." in ended.err


def test_a_dense_run_that_is_gone_is_asked_for(runs, tmp_path):
    found = compressing.search(config_of(), 0.9, "size", (0.5,), runs, max_drop=1.0)
    gone = found.dense.folder.rename(tmp_path / "gone")
    try:
        with pytest.raises(UserError, match="The dense run of"):
            compressing.search(config_of(), 0.9, "size", (0.5,), runs, max_drop=1.0)
    finally:
        gone.rename(found.dense.folder)


# ---- the command


def test_the_command_chooses_writes_exports_and_makes_nothing_twice(command, runs, tmp_path):
    there = sorted(runs.glob("*/*/*"))
    more = ("--max-gap", "0.9", "--target", "size", "--json", "found.json", "--page", "page.html", "--out", "model")
    ended = command(*asked(runs, *more))
    assert ended.code == 0, ended
    assert sorted(runs.glob("*/*/*")) == there
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["chosen"] == 0.75
    assert content["outcome"] == "passed"
    assert [each["sparsity"] for each in content["candidates"]] == list(SPARSITIES)
    assert content["dense"]["excess"] is None
    assert content["tested"]["accuracy"].keys() == {"chosen", "dense"}
    assert content["measured"]["threads"] == content["measured"]["batch"] == 1
    assert "sparsity" not in content["config"]["options"]
    assert json.loads((tmp_path / "page.json").read_text()) == content
    assert content["command"].startswith("evenlens compress tiny magnitude --max-gap 0.9 --target size --seed 1 ")
    assert "Chosen: sparsity 0.75" in ended.out
    assert "On test images, which had no part in the choice" in ended.out
    assert ended.out.count("\n dense ") == 1
    about = json.loads((tmp_path / "model" / "export.json").read_text())
    assert about["run"] == Path(content["candidates"][1]["folder"]).name
    assert (tmp_path / "model" / about["files"]["model"]).is_file()
    words = Tags((tmp_path / "page.html").read_text()).words
    assert "Chosen: sparsity 0.75" in words


def test_what_cannot_be_told_ends_with_3(command, runs, tmp_path):
    ended = command(*asked(runs, "--max-gap", "0", "--json", "found.json"))
    assert ended.code == 3, ended
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["chosen"] is content["tested"] is None
    assert "It cannot be told whether any of 2 candidates is within 0" in ended.out
    assert "more validation images" in ended.out


def test_what_is_surely_not_within_ends_with_1_and_exports_nothing(command, tmp_path):
    words = [f"{key}={value}" for key, value in SPOILT.items()]
    ended = command("compress", "tiny", "magnitude", *words, "--sparsity", "0.99", "--target", "size", "--max-gap",
                    "0.01", "--out", "model")  # fmt: skip
    assert ended.code == 1, ended
    assert "No candidate of 1 is within 0.01" in ended.out
    assert "What may help: a sparsity below 0.99, or objective=ceag" in ended.out
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tiny", "magnitude", "--max-gap", "-0.1"), "max-gap=-0.1 is not allowed"),
        (("tiny", "magnitude", "--max-gap", "1"), "max-gap=1 is not allowed"),
        (("tiny", "magnitude", "--max-gap", "nan"), "max-gap=nan is not allowed"),
        (("tiny", "magnitude", "--max-drop", "1.5"), "max-drop=1.5 is not allowed"),
        (("tiny", "magnitude", "--target", "latenzy"), "Unknown target 'latenzy'; did you mean 'latency'?"),
        (("tiny", "magnitude", "--sparsity", "0.5,1"), "above 0 and below 1, and 1 is not"),
        (("tiny", "magnitude", "--sparsity", "0,0.5"), "above 0 and below 1, and 0 is not"),
        (("tiny", "magnitude", "--sparsity", "nan"), "and nan is not"),
        (("tiny", "magnitude", "--sparsity", ","), "and there is none"),
        (("tiny", "magnitude", "--sparsity", "half"), "--sparsity half is not right"),
        (("tiny", "magnitude", "sparsity=0.5"), "give them with --sparsity"),
        (("tiny", "magnitude", "structure=weights"), "structure=weights makes nothing faster"),
        (("tiny", "magnitude", "structure=2:4"), "structure=2:4 makes nothing faster"),
        (("tiny", "magnitude", "structure=channel"), "did you mean 'channels'"),
        (("tiny", "magnitude", "structure=2:4", "--target", "size", "--sparsity", "0.9"), "always 0.5"),
        (("tiny", "magnitude", "--confidence", "95"), "A confidence lies between 0 and 1"),
        (("tiny", "magnitude", "--page", "page.json"), "name the page .html"),
        (("tiny", "magnitude", "--out", "."), "holds other things than an export"),
        (("tiny", "magnitude", "dense=nowhere"), "nowhere is no run"),
        (("tiny", "magnitud"), "Unknown method that makes networks smaller 'magnitud'; did you mean 'magnitude'?"),
        (("tiny", "group_dro"), "group_dro makes no network smaller: choose one of"),
        (("tiny", "magnitude", "tolerence=0.1"), "did you mean 'tolerance'"),
    ],
)
def test_what_cannot_be_is_refused_before_data_are_read(refused, monkeypatch, tmp_path, words, said):
    (tmp_path / "note.txt").write_text("of a person")
    monkeypatch.setattr(run, "load_data", None)
    assert said in refused("compress", *words)


def train_and_test(table, label, group, seed):
    return np.where(np.arange(len(table)) % 3, PARTS.index("train"), PARTS.index("test"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data.num_groups=1",), "at least two groups are needed"),
        (("data.num=60",), "The part 'val' of tiny has no image"),
    ],
)
def test_data_without_two_groups_or_validation_images_are_refused_before_training(refused, monkeypatch, words, said):
    if "has no image" in said:
        nothing = fake.Protocol("none to select on", "place", ("tint",), train_and_test)
        monkeypatch.setitem(fake.Tiny.protocols, "made", nothing)
    assert said in refused("compress", "tiny", "magnitude", *words)


def test_every_method_that_compresses_is_known():
    pruners = {name for name in methods.names() if methods.get(name).stage == "compress"}
    for name in pruners:
        asked_for = compressing.candidates_of(make_config("tiny", name), "latency")
        assert [config.options["sparsity"] for config in asked_for] == [0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
        assert {config.options["structure"] for config in asked_for} == {"channels"}
    weights = compressing.candidates_of(make_config("tiny", "magnitude", {"structure": "weights"}), "size")
    assert [config.options["sparsity"] for config in weights] == [0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99]
    given = compressing.candidates_of(make_config("tiny", "magnitude"), "size", [0.7, 0.2, 0.7])
    assert [config.options["sparsity"] for config in given] == [0.2, 0.7]


# ---- the page


HOSTILE = ("</script><script>window.hacked=1</script>", '"><img src=x onerror=window.hacked=2>', "{{ 7 * 7 }} & 'it'")


def hostile():
    every = [
        replace(made_up(0.25, 3.0, verdict="not within", gap=0.3), worst=HOSTILE[0]),
        replace(made_up(0.5, 2.0, verdict="cannot be told", gap=0.03), worst=HOSTILE[1]),
        made_up(0.75, 1.0, gap=0.01),
        replace(made_up(0.9, 0.9, verdict="cannot be told"), excess=interval(math.nan), worst=""),
    ]
    every[0] = replace(every[0], worst_group_accuracy=interval(math.nan))
    tested = candidates.Tested(
        interval(0.05, 0.0, 0.09), HOSTILE[0], interval(0.1, -0.01, 0.2), "cannot be told",
        *[{"chosen": interval(0.8, 0.7, 0.9), "dense": interval(0.9, 0.85, 0.95)}] * 2,
    )  # fmt: skip
    found = found_of(every, every[2], failed={f"sparsity 0.6 {HOSTILE[1]}": HOSTILE[0]})
    config = found.config.model_copy(update={"dataset": HOSTILE[2], "method": HOSTILE[1]})
    return {**replace(found, config=config, tested=tested).as_dict(), "command": f"evenlens compress {HOSTILE[0]}"}


@pytest.mark.page
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_drawn_and_asks_for_nothing_whatever_names_hold(opened, tmp_path, width):
    path = frontier.write(hostile(), tmp_path / "page.html")
    tab = opened(path, width)
    check_drawn(tab, path, 1)
    assert tab.evaluate("window.hacked === undefined")
    words = tab.locator("body").inner_text()
    for name in HOSTILE:
        assert name in words
    assert "0.010" in words
    drawn = tab.locator(".chart").inner_text()
    for name in ("dense network", "within the bound", "cannot be told", "not within", "0.75"):
        assert name in drawn
    tab.get_by_role("button", name="Time, p50").click()
    shown = tab.locator("#candidates ~ .scroll tbody th").all_inner_texts()
    assert shown[0].startswith("0.9")


def test_the_page_says_what_was_chosen_and_how_it_was_tested(tmp_path):
    content = hostile()
    words = Tags(frontier.render(content)).words
    assert "0.75 chosen" in words
    assert "On them the bound is not surely kept" in words
    assert content["tested"]["excess"]["value"] == 0.05
    none = copy.deepcopy(content)
    none.update(chosen=None, tested=None, command=None)
    words = Tags(frontier.render(none)).words
    assert "Tested once" not in words
    assert "The command was not written down" in words
    with pytest.raises(UserError, match=r"name the page \.html"):
        frontier.write(content, tmp_path / "page.json")


def test_every_verdict_has_a_colour_and_a_shape_of_its_own():
    kinds = frontier.VERDICTS.values()
    assert len({colour for _, colour, _ in kinds}) == len({shape for _, _, shape in kinds}) == len(kinds) == 4


def test_the_figure_marks_the_chosen_one_alone():
    drawn = frontier.figure(hostile())
    points = next(iter(drawn.spec["datasets"].values())) if "datasets" in drawn.spec else drawn.spec["data"]["values"]
    assert [point["label"] for point in points if point["chosen"]] == ["0.75"]
    assert [row[0] for row in drawn.rows] == ["dense", "0.25", "0.5", "0.75, chosen", "0.9"]
