"""The page of a generator's audit: what it claims, of hostile names too, and that it is of use to all."""

import copy
import functools
import json
import re

import numpy as np
import pytest
from PIL import Image

from evenlens.errors import UserError
from evenlens.generation import Confusion, Labels, Targets, audit, compare_features, words
from evenlens.generation.labels import Attribute
from evenlens.generation.quality import Features
from evenlens.report import generation_figures, generation_page
from tests.pages import Tags, check_drawn

HOSTILE = (
    "<script>window.hacked=1</script>",
    '</script><img src=x onerror=window.hacked=2>"',
    "{{ 7 * 7 }}\nline \u2028",
)


def labels(counts, classes=None, where="made.csv", lost=10, seed=0, probability=True):
    """Images of one face with these counts of classes, in a random order, and some without a face."""
    classes = classes or tuple(f"c{k}" for k in range(len(counts)))
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(codes)
    codes = np.append(codes, np.full(lost, -1))
    sure = np.full((n + lost, len(classes)), 0.1 / (len(classes) - 1))
    sure[np.arange(n), codes[:n]] = 0.9
    sure[n:] = np.nan
    ids = np.array([f"{k:04d}.png" for k in range(n + lost)])
    other = Attribute(("m", "f"), np.where(codes < 0, -1, np.arange(n + lost) % 2))
    race = Attribute(tuple(classes), codes, sure if probability else None)
    return Labels(ids, np.zeros(n + lost, dtype=int), (codes >= 0).astype(int), {"race": race, "sex": other}, {}, where)


def found(counts, names=("race",), **options):
    made = audit(labels(counts), names, replicates=200, **options)
    return json.loads(json.dumps(made.as_dict(), allow_nan=False))


@functools.cache
def hostile_text():
    one, two = labels([300, 200, 100], HOSTILE, "<b>.csv"), labels([200, 200, 200], HOSTILE, "</b>.csv", seed=1)
    errors = Confusion(HOSTILE, np.eye(3, dtype=int) * 50 + 10, "<i>.csv")
    made = audit(one, ("race",), [("race", "sex")], against=two, confusions={"race": errors}, replicates=100,
                 title="</title><script>window.hacked=3</script>")  # fmt: skip
    random = np.random.default_rng(0)
    features = [Features(random.normal(size=(610, 4)), None, "<u>.npy") for _ in range(2)]
    quality = compare_features(*features, "<script>window.hacked=4</script>", one, two, "race", subsets=3)
    content = {**made.as_dict(quality), "command": "evenlens '<script>window.hacked=5</script>'"}
    return json.dumps(content, allow_nan=False)


def hostile():
    return json.loads(hostile_text())


# ---- what it says


def test_the_words_say_what_the_numbers_say():
    content = found([700, 100, 100, 100])
    assert words.headline(content) == (
        "By race, “c0” is seen in 70.0 % of the images and “c1” in 10.0 %: clearly not equal shares."
    )
    first, second = words.sentences(content, content["parts"][0])
    assert re.match(r"“c0” is the most frequent of 4 categories, with 70.0 % of 1,000 images \(95 % interval", first)
    assert "To meet the target, equal shares, 45.0 % of the images would have to be of another category" in second
    assert "images drawn from the target itself would be 2.2 % away on average" in second
    assert "That is clearly more (chi-square test, p < 0.0001)." in second
    assert "1,000 of 1,010 images are counted, those with exactly one face. No face was found in 1.0 %" in words.faces(
        content
    )


def test_what_is_not_clear_is_not_claimed():
    content = found([255, 245])
    assert words.headline(content).endswith("not clearly different from equal shares.")
    assert "That is not clearly more (chi-square test, p = 0.65)." in words.sentences(content, content["parts"][0])[1]
    few = found([4, 2, 1])
    assert words.headline(few).endswith("too few images to tell whether that is equal shares.")
    assert any("its chi-square test and intervals are rough" in text for text in few["caveats"])
    none = found([5, 5, 5], target=Targets({"race": {"c0": 0.5, "c1": 0.5, "c2": 0}}))
    assert "in a category of which the target has none, so it is not met" in words.sentences(none, none["parts"][0])[1]
    assert none["parts"][0]["distances"]["kl"]["value"] is None


def test_a_category_that_never_occurs_is_named_and_one_that_cannot_be_known_is_a_caveat():
    content = found([50, 50, 0])
    assert "“c2” never occurs (0.0 to 5.4 %)" in words.sentences(content, content["parts"][0])[0]
    made = audit(labels([50, 50], probability=False), ("race",), replicates=50).as_dict()
    assert any("so a category that no image has is not known" in text for text in made["caveats"])
    assert words.APPARENT in made["caveats"]
    assert any("10 of 110 images are in no share" in text for text in made["caveats"])


def test_another_set_of_the_same_ids_is_compared_in_pairs():
    content = found([700, 200, 100], against=labels([500, 250, 250], where="there/student.csv"))
    part = content["parts"][0]
    assert part["comparison"]["paired"]
    assert re.search(
        r"student.csv \(1,000 images with the same ids\) is clearly nearer to the target: "
        "its total variation is 16.7 %, which is \N{MINUS SIGN}20.0 points",
        words.sentences(content, part)[2],
    )
    other = labels([500, 250, 250])
    moved = Labels(np.char.add("x", other.ids), other.face, other.n_faces, other.attributes, {}, "b.csv")
    apart = found([700, 200, 100], against=moved)
    assert not apart["parts"][0]["comparison"]["paired"]
    assert "b.csv (1,000 other images) is clearly nearer" in words.sentences(apart, apart["parts"][0])[2]


def test_the_target_of_other_labels_is_theirs_and_products_are_of_crossed_ones():
    wanted = Targets(labels=labels([500, 300, 200], where="there/wanted.csv").one_face()[0])
    part = found([700, 200, 100], ("race",), joint=[("race", "sex")], target=wanted)["parts"]
    assert [entry["target"] for entry in part[0]["categories"]] == [0.5, 0.3, 0.2]
    assert part[0]["target"] == "the shares in wanted.csv (1,000 images)"
    assert sum(entry["target"] for entry in part[1]["categories"]) == pytest.approx(1)
    given = Targets({"race": {"c0": 0.5, "c1": 0.3, "c2": 0.2}})
    part = found([700, 200, 100], ("race",), joint=[("race", "sex")], target=given)["parts"][1]
    assert [entry["target"] for entry in part["categories"]] == pytest.approx([0.25, 0.25, 0.15, 0.15, 0.1, 0.1])
    assert part["target"] == "the products of the attributes' targets"


def test_a_correction_stands_beside_the_raw_shares_and_a_useless_one_is_a_caveat():
    c = np.array([[80, 10, 10], [10, 80, 10], [10, 10, 80]])
    content = found([590, 240, 170], confusions={"race": Confusion(("c2", "c1", "c0"), c[::-1, ::-1], "e.csv")})
    corrected = [entry["corrected"]["value"] for entry in content["parts"][0]["categories"]]
    assert corrected == pytest.approx([0.7, 0.2, 0.1], abs=1e-6)
    assert "Corrected for the classifier's errors, “c0” is 70.0 %" in words.sentences(content, content["parts"][0])[2]
    assert not any("mostly amplifies noise" in text for text in content["caveats"])
    ill = found(
        [590, 240, 170], confusions={"race": Confusion(("c0", "c1", "c2"), np.full((3, 3), 9) + np.eye(3, dtype=int))}
    )
    assert any("mostly amplifies noise" in text for text in ill["caveats"])
    unknown = found([590, 240, 170], confusions={"race": Confusion(("c0", "c1", "c2"), np.full((3, 3), 9))})
    assert json.dumps(unknown, allow_nan=False)


# ---- the page


def page(content, tmp_path, sheets=()):
    return generation_page.write(content, tmp_path / "audit.html", sheets)


def test_every_number_of_the_findings_stands_in_a_table(tmp_path):
    content = found([700, 200, 100], joint=[("race", "sex")])
    said = Tags(page(content, tmp_path).read_text(encoding="utf-8")).words
    for part in content["parts"]:
        for entry in part["categories"]:
            assert f"{entry['count']:,}" in said
            assert words.spread(entry["together"]) in said
        assert f"{part['distances']['kl']['value']:.4f}" in said
    assert words.APPARENT in said
    assert json.loads((tmp_path / "audit.json").read_text()) == content
    with pytest.raises(UserError, match="name the page"):
        generation_page.write(content, tmp_path / "audit.json")


def test_a_figure_draws_the_target_and_all_kinds_of_shares():
    content = hostile()
    figure = generation_figures.shares(content, 0)
    assert {row[1] for row in figure.rows} == {kind for kind, _ in generation_figures.KINDS.values()}
    assert len(figure.rows) == 9
    assert "the target, equal shares" in figure.caption
    many = found([3] * 50)
    assert len(generation_figures.shares(many, 0).rows) == generation_figures.MOST
    assert "Drawn are the 40 of 50 categories" in generation_figures.shares(many, 0).caption


def test_hostile_names_stay_text(tmp_path):
    tags = Tags(page(hostile(), tmp_path).read_text(encoding="utf-8"))
    assert [tag for tag, _ in tags.tags].count("script") == 2
    assert not any("onerror" in attributes for _, attributes in tags.tags)
    assert "49" not in [word for word in tags.words.split() if word == "49"]
    assert "<script>window.hacked=4</script>" in tags.words


@pytest.mark.page
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_drawn_in_chromium_and_asks_for_nothing(tmp_path, opened, width):
    put(tmp_path / "images" / "a.png")
    sheet = generation_page.sheet("race", {HOSTILE[0]: ["a.png"], "empty": []}, tmp_path / "images")
    tab = opened(page(hostile(), tmp_path, [sheet]), width)
    check_drawn(tab, tmp_path / "audit.html", 2)
    assert tab.evaluate("window.hacked") is None
    assert tab.locator(".sheet img").evaluate("image => image.naturalWidth") == 112
    assert tab.evaluate("document.querySelectorAll('h1').length") == 1


# ---- examples


def put(path, size=(300, 200)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path)


def test_examples_are_small_and_found_without_their_ending(tmp_path):
    put(tmp_path / "in" / "a.png")
    put(tmp_path / "b.jpg", (20, 30))
    sheet = generation_page.sheet("race", {"x": ["in/a.png", "b"]}, tmp_path)
    first, second = sheet.categories["x"]
    assert first.uri.startswith("data:image/jpeg;base64,")
    assert len(first.uri) < 4000
    assert (first.name, second.name) == ("in/a.png", "b")


def test_no_example_comes_from_outside_the_folder(tmp_path):
    put(tmp_path / "secret.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    for bad in ("../secret.png", "a/../../secret.png", "/etc/passwd", "~/x.png", "C:/x.png"):
        with pytest.raises(UserError, match="paths must lie below"):
            generation_page.check_ids(np.array(["fine.png", bad]), "l.csv")
    generation_page.check_ids(np.array(["a..png", "in/b.png"]), "l.csv")
    with pytest.raises(UserError, match="is a link to somewhere outside"):
        generation_page.sheet("race", {"x": ["link.png"]}, tmp_path / "in")
    with pytest.raises(UserError, match="There is no image nowhere"):
        generation_page.sheet("race", {"x": ["nowhere.png"]}, tmp_path)
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"bad.png .* cannot be read"):
        generation_page.sheet("race", {"x": ["bad.png"]}, tmp_path)


def test_a_page_is_made_again_of_its_json(tmp_path):
    content = hostile()
    before = copy.deepcopy(content)
    assert generation_page.render(content) == generation_page.render(json.loads(json.dumps(content)))
    assert content == before
