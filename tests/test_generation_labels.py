"""Tables of labelled images: what is read, what is refused, and which faces count."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from evenlens.errors import UserError
from evenlens.generation import face_csv, read_labels, write_labels
from evenlens.generation.labels import Attribute, Labels

# Made up: five faces of four images, arrays as numpy prints them, two with line breaks.
SAMPLE = """\
face_name_align,race,race4,gender,age,race_scores_fair,race_scores_fair_4,gender_scores_fair,age_scores_fair
detected_faces/0001_face0.png,White,White,Male,20-29,"[9.1e-01 2.0e-02 3.0e-02 1.0e-02 1.0e-02 1.0e-02
 1.0e-02]",[0.97 0.01 0.01 0.01],[0.75 0.25],[0.  0.  0.1 0.6 0.2 0.1 0.  0.  0. ]
detected_faces/0002_face0.png,Black,Black,Female,3-9,"[0.01 0.94 0.01 0.01 0.01 0.01 0.01]",[0.1 0.7 0.1 0.1],[0. 1.],"[1.0000000e-03 9.9200000e-01
 1.0000000e-03 1.0000000e-03 1.0000000e-03 1.0000000e-03 1.0000000e-03 1.0000000e-03 1.0000000e-03]"
detected_faces/0002_face1.png,East Asian,Asian,Female,70+,[0.1 0.1 0.1 0.4 0.1 0.1 0.1],[.2 .2 .4 .2],[0.4 0.6],[0. 0. 0. 0. 0. 0. 0. 0. 1.]
detected_faces/a_face_b_face0.jpg,Latino_Hispanic,Asian,Male,30-39,[0.1 0.1 0.4 0.1 0.1 0.1 0.1],[0.2 0.2 0.4 0.2],[1.0 0.0],[0. 0. 0. 0. 1. 0. 0. 0. 0.]
detected_faces/0004_face0,Middle Eastern,White,Male,0-2,[0.1 0.1 0.1 0.1 0.1 0.1 0.4],[0.4 0.2 0.2 0.2],[0.6 0.4],[1. 0. 0. 0. 0. 0. 0. 0. 0.]
"""  # noqa: E501
HEAD = "id,face,n_faces,race,race.probability.A,race.probability.B\n"


def put(tmp_path, text, name="labels.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.fixture
def made():
    """Images p (one face), q (two), r (none) and s (one)."""
    probability = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [np.nan, np.nan], [0.5, 0.5]])
    margin = np.array([0.8, 0.2, 0.6, np.nan, 0.0])
    return Labels(
        np.array(["p", "q", "q", "r", "s"]), np.array([0, 0, 1, 0, 0]), np.array([1, 2, 2, 0, 1]),
        {"race": Attribute(("A", "B"), np.array([0, 1, 1, -1, 0]), probability, margin)},
        {"split": np.array(["a", "b", None, "a", "b"], dtype=object)},
    )  # fmt: skip


def same(one, other):
    assert one.ids.tolist() == other.ids.tolist()
    for part in ("face", "n_faces"):
        assert getattr(one, part).tolist() == getattr(other, part).tolist()
    assert list(one.attributes) == list(other.attributes)
    for name, attribute in one.attributes.items():
        read = other.attributes[name]
        assert attribute.classes == read.classes
        assert attribute.codes.tolist() == read.codes.tolist()
        np.testing.assert_allclose(attribute.probability, read.probability, atol=1e-6)


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_what_is_written_is_read_again(made, tmp_path, name):
    write_labels(made, tmp_path / name)
    read = read_labels(tmp_path / name)
    same(made, read)
    np.testing.assert_array_equal(read.attributes["race"].margin, made.attributes["race"].margin)
    assert read.others["split"].tolist() == ["a", "b", None, "a", "b"]
    assert read.notes == ()


def test_faces_are_kept_by_a_rule_and_what_is_dropped_is_counted(made):
    single, faces = made.one_face()
    assert (single.ids.tolist(), faces) == (["p", "s"], (4, 1, 1, 2, 2, "single"))
    first, faces = made.one_face("first")
    assert (first.ids.tolist(), first.face.tolist()) == (["p", "q", "s"], [0, 0, 0])
    assert (faces.kept, faces.left_out) == (3, 1)
    sure, _ = made.one_face("confident")
    assert (sure.ids.tolist(), sure.face.tolist()) == (["p", "q", "s"], [0, 1, 0])
    shuffled = made.select(np.array([4, 2, 3, 1, 0]))
    assert shuffled.one_face("first")[0].face.tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="Unknown rule"):
        made.one_face("largest")


def test_without_a_face_there_is_nothing_to_audit(tmp_path):
    path = put(tmp_path, "id,n_faces,race\na,0,\nb,0,\n")
    with pytest.raises(UserError, match="is empty: it holds the class"):
        read_labels(path, ["race"])
    with pytest.raises(UserError, match="has no attribute"):
        read_labels(path)
    path = put(tmp_path, HEAD + "a,0,0,,,\nb,0,0,,,\n")
    with pytest.raises(UserError, match=r"No image of .* is left with one face"):
        read_labels(path).one_face()


def test_without_probabilities_no_face_is_more_confident(tmp_path):
    read = read_labels(put(tmp_path, "id,race\na,x\nb,y\n"))
    assert read.attributes["race"].probability is None
    assert "does not say in how many images no face was found" in read.notes[0]
    with pytest.raises(UserError, match="--faces first"):
        read.one_face("confident")


def test_attributes_are_those_with_probabilities_or_those_named(tmp_path):
    path = put(tmp_path, "id,n_faces,race,race.probability.A,race.probability.B,origin\na,1,A,.6,.4,x\nb,1,B,.1,.9,y\n")
    assert list(read_labels(path).attributes) == ["race"]
    named = read_labels(path, ["origin"])
    assert named.attributes["origin"].classes == ("x", "y")
    assert "race.probability.A" in named.others
    with pytest.raises(UserError, match="did you mean 'origin'"):
        read_labels(path, ["orign"])


@pytest.mark.parametrize(("rows", "said"), [
    ("a,0,1,A,.9,.1\n,0,1,A,.9,.1", "Row 3 of labels.csv has no id"),
    ("a,0,1,A,.9,.1\na,0,1,A,.9,.1", "Row 3 of labels.csv has face 0 of 'a' again"),
    ("a,0,1,A,.9,.2", "Row 2 of labels.csv has as probabilities of race 0.9, 0.2: needed is numbers in"),
    ("a,0,1,A,1.1,-.1", "has as probabilities of race 1.1, -0.1"),
    ("a,0,1,A,nan,1", "has as probabilities of race nan, 1"),
    ("a,0,1,A,inf,1", "has as probabilities of race inf, 1"),
    ("a,0,1,A,,", "has as probabilities of race nothing: needed is numbers"),
    ("a,0,0,,.5,.5", "needed is nothing, without a face"),
    ("a,0,1,A,x,1", "Row 2 of labels.csv has the race.probability.A 'x', which is no number"),
    ("a,0,1,C,.9,.1", "Row 2 of labels.csv has the race 'C': allowed are A, B, or nothing."),
    ("a,0,0,A,,", "has n_faces 0 and yet the race 'A'"),
    ("a,0,-1,A,.9,.1", "has the n_faces -1: a whole number from 0 is needed"),
    ("a,.5,1,A,.9,.1", "has the face .5: a whole number"),
    ("a,,1,A,.9,.1", "has the face nothing: a whole number"),
    ("a,2,2,A,.9,.1", "Row 2 of labels.csv has a face beyond n_faces"),
    ("a,0,2,A,.9,.1\na,1,3,A,.9,.1", "Row 3 of labels.csv has another n_faces than the rows before"),
    ("", "labels.csv has no rows"),
])  # fmt: skip
def test_bad_rows_are_refused_with_their_number(tmp_path, rows, said):
    with pytest.raises(UserError) as refused:
        read_labels(put(tmp_path, HEAD + rows + "\n" * bool(rows)))
    assert said in str(refused.value)


def test_probabilities_may_miss_one_a_little(tmp_path):
    assert len(read_labels(put(tmp_path, HEAD + "a,0,1,A,.9005,.1\nb,0,1,B,.0995,.9\n"))) == 2


def test_rows_of_parquet_are_numbered_from_one_and_pickles_are_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a", None], "race": ["x", "y"]}), tmp_path / "l.parquet")
    with pytest.raises(UserError, match=r"Row 2 of l.parquet has no id"):
        read_labels(tmp_path / "l.parquet")
    with pytest.raises(UserError, match="may run code"):
        read_labels(put(tmp_path, "x", "labels.pkl"))
    with pytest.raises(UserError, match="There is no table"):
        read_labels(tmp_path / "nowhere.csv")


# ---- the published form


def test_the_published_csv_is_read_with_its_wrapped_arrays(tmp_path):
    read = read_labels(put(tmp_path, SAMPLE))
    assert read.ids.tolist() == ["0001.png", "0002.png", "0002.png", "a_face_b.jpg", "0004"]
    assert read.face.tolist() == [0, 0, 1, 0, 0]
    assert read.n_faces.tolist() == [1, 2, 2, 1, 1]
    race, age = read.attributes["race"], read.attributes["age"]
    assert race.classes[:3] == ("White", "Black", "Latino_Hispanic")
    assert race.codes.tolist() == [0, 1, 3, 2, 6]
    assert read.attributes["race4"].codes.tolist() == [0, 1, 2, 2, 0]
    assert read.attributes["gender"].codes.tolist() == [0, 1, 1, 0, 0]
    assert [age.classes[code] for code in age.codes] == ["20-29", "3-9", "70+", "30-39", "0-2"]
    np.testing.assert_allclose(race.probability[0], [0.91, 0.02, 0.03, 0.01, 0.01, 0.01, 0.01])
    np.testing.assert_allclose(age.probability[1], [0.001, 0.992, *[0.001] * 7])
    np.testing.assert_allclose(race.margin, [0.88, 0.93, 0.3, 0.3, 0.3])
    for attribute in read.attributes.values():
        np.testing.assert_allclose(attribute.probability.sum(axis=1), 1, atol=1e-6)
    assert "how many there were is not known" in read.notes[0]
    assert list(read_labels(tmp_path / "labels.csv", ["gender"]).attributes) == ["gender"]


def test_the_published_form_is_written_and_read_again(tmp_path):
    random = np.random.default_rng(1)
    attributes = {}
    for name, (_, classes) in face_csv.HEADS.items():
        probability = random.dirichlet(np.full(len(classes), 0.1), 40).astype(np.float32).astype(np.float64)
        attributes[name] = Attribute(classes, probability.argmax(axis=1), probability)
    ids = np.array([f"{k // 2}.png" for k in range(40)])
    made = Labels(ids, np.arange(40) % 2, np.full(40, 2), attributes)
    face_csv.write(made, tmp_path / "out.csv")
    text = (tmp_path / "out.csv").read_text()
    assert text.count("\n") > 45, "long arrays are wrapped, as numpy does"
    same(made, read_labels(tmp_path / "out.csv"))
    with pytest.raises(UserError, match=r"is a .csv"):
        face_csv.write(made, tmp_path / "out.parquet")
    strange = Labels(ids, made.face, made.n_faces, {"race": Attribute(("a", "b"), np.zeros(40, dtype=int))})
    with pytest.raises(UserError, match="The attribute race is not one of this form"):
        face_csv.write(strange, tmp_path / "out.csv")


@pytest.mark.parametrize(("old", "new", "said"), [
    ("[0.75 0.25]", "[0.75 0.2 0.05]", "Row 2 of labels.csv has 3 numbers in gender_scores_fair: 2 are needed"),
    ("[0.75 0.25]", "[nan 0.25]", "has as probabilities of gender nan, 0.25"),
    ("[0.75 0.25]", "", "has 0 numbers in gender_scores_fair"),
    (",White,White,", ",Purple,White,", "Row 2 of labels.csv has the race 'Purple'"),
    ("0002_face1", "0002_face0", "has the face 'detected_faces/0002_face0.png' again"),
    ("detected_faces/0001_face0.png", "", "Row 2 of labels.csv has no face_name_align"),
])  # fmt: skip
def test_bad_rows_of_the_published_form_are_refused(tmp_path, old, new, said):
    assert old in SAMPLE
    with pytest.raises(UserError) as refused:
        read_labels(put(tmp_path, SAMPLE.replace(old, new, 1)))
    assert said in str(refused.value)
