"""Tables that people made: each is read as it was meant, or refused in one sentence."""

import csv
import gzip
import io
import re
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens.data.reading import in_order, read_table, to_column, to_numbers
from evenlens.errors import UserError

ABC = "path,label,note\na.jpg,x,1\nb.jpg,y,2\n"
READ = {"path": ["a.jpg", "b.jpg"], "label": ["x", "y"], "note": ["1", "2"]}


def made(path, content):
    """A table of bytes, text or columns."""
    if isinstance(content, dict | pa.Table):
        pa.parquet.write_table(content if isinstance(content, pa.Table) else pa.table(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, *columns):
    """The one sentence with which a table is refused."""
    with pytest.raises(UserError) as error:
        read_table(path, columns)
    message = str(error.value)
    assert "\n" not in message
    assert path.name in message
    assert message.endswith(".")
    return message


# ---- what is read


@pytest.mark.parametrize(("name", "content"), [
    ("plain.csv", ABC),
    ("semicolons and a mark of byte order, from Excel.csv", "\ufeff" + ABC.replace(",", ";").replace("\n", "\r\n")),
    ("tabs.tsv", ABC.replace(",", "\t")),
    ("tabs called.csv", ABC.replace(",", "\t")),
    ("bars.txt", ABC.replace(",", "|")),
    ("no end of line at the end.csv", ABC.rstrip()),
    ("empty lines.csv", ABC.replace("\n", "\n\n") + "\n"),
    ("old Macintosh.csv", ABC.replace("\n", "\r")),
    ("old Macintosh without an end.csv", ABC.rstrip().replace("\n", "\r")),
    ("spaces.csv", ABC.replace(",", " , ").replace("\n", "  \n")),
    ("packed.csv.gz", gzip.compress(ABC.encode(), mtime=0)),
    ("PACKED.TSV.GZ", gzip.compress(ABC.replace(",", "\t").encode(), mtime=0)),
    ("UPPER.CSV", ABC),
    ("quoted.csv", '"path","label","note"\n"a.jpg","x","1"\n"b.jpg","y","2"\n'),
    ("p.parquet", {"path": ["a.jpg", "b.jpg"], "label": ["x", "y"], "note": [1, 2]}),
    ("p.PQ", {" path ": ["a.jpg", "b.jpg"], "label": pa.array(["x", "y"]).dictionary_encode(), "note": [1.0, 2.0]}),
])  # fmt: skip
def test_a_table_is_read_whatever_program_wrote_it(tmp_path, name, content):
    assert read_table(made(tmp_path / name, content)).to_pydict() == READ


def test_quoted_fields_may_hold_delimiters_quotes_and_line_ends(tmp_path):
    content = 'path,note\n"a, 1.jpg","one\ntwo, ""three"""\r\nb.jpg,four\n'
    assert read_table(made(tmp_path / "t.csv", content)).to_pydict() == {
        "path": ["a, 1.jpg", "b.jpg"], "note": ['one\ntwo, "three"', "four"]
    }  # fmt: skip


def test_quoted_line_ends_are_read_also_where_the_file_is_longer_than_a_block(tmp_path):
    row = '"a.jpg","one\ntwo"\n'
    num = (1 << 25) // len(row)
    table = read_table(made(tmp_path / "t.csv", "path,note\n" + row * num))
    assert len(table) == num
    assert table.column("note").unique().to_pylist() == ["one\ntwo"]


def test_a_field_of_megabytes_is_read(tmp_path):
    table = read_table(made(tmp_path / "t.csv", f"path,note\na.jpg,{'x' * 3_000_000}\nb.jpg,y\n"))
    assert [len(value) for value in table.column("note").to_pylist()] == [3_000_000, 1]


def test_nothing_is_taken_for_a_number_or_a_date_or_for_missing_but_nan(tmp_path):
    values = ["007", "1.0", "2020-01-02", "true", "NA", "None", "", "nan", "NaN", " ", "NULL"]
    table = read_table(made(tmp_path / "t.csv", "path,v\n" + "".join(f"{k},{v}\n" for k, v in enumerate(values))))
    assert table.column("v").to_pylist() == [
        "007", "1.0", "2020-01-02", "true", "NA", "None", None, None, None, None, "NULL"
    ]  # fmt: skip


def test_values_of_parquet_become_words_and_what_is_no_single_value_is_left_out(tmp_path):
    content = pa.table({
        "flag": [True, None],
        "whole": pa.array([1, None], pa.int8()),
        "float": [1.0, float("nan")],
        "words": pa.array(["b", None]).dictionary_encode(),
        "coded": pa.array([7, 8]).dictionary_encode(),
        "nothing": pa.nulls(2),
        "long": pa.array(["x", " "], pa.large_string()),
        "day": pa.array([0, 1], pa.date32()),
        "text": [b"bytes", b"that are text"],
        "picture": [b"\xff\xd8", b"\xff\xd8"],
        "list": [[1], [2]],
        "parts": [{"a": 1}, {"a": 2}],
        "a.b": ["dot", "in the name"],
    })  # fmt: skip
    assert read_table(made(tmp_path / "t.parquet", content)).to_pydict() == {
        "flag": ["true", None],
        "whole": ["1", None],
        "float": ["1", None],
        "words": ["b", None],
        "coded": ["7", "8"],
        "nothing": [None, None],
        "long": ["x", None],
        "day": ["1970-01-01", "1970-01-02"],
        "text": ["bytes", "that are text"],
        "a.b": ["dot", "in the name"],
    }


def test_the_folders_that_parquet_lies_in_add_no_columns(tmp_path):
    (tmp_path / "split=train").mkdir()
    assert read_table(made(tmp_path / "split=train" / "t.parquet", {"path": ["a"]})).column_names == ["path"]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_columns_without_a_name_are_called_by_their_place(tmp_path, name):
    content = {"": ["a"], "label": ["x"]} if name == "t.parquet" else ",label,,\na,x,,\n"
    names = read_table(made(tmp_path / name, content)).column_names
    assert names == ["column 1", "label", "column 3", "column 4"][: len(names)]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_only_the_asked_columns_are_read(tmp_path, name):
    content = {"path": ["a"], "big": [[1]], "label": ["x"]} if name == "t.parquet" else "path,big,label\na,b,x\n"
    table = read_table(made(tmp_path / name, content), ["label", "path"])
    assert {column: table.column(column).to_pylist() for column in table.column_names} == {
        "label": ["x"],
        "path": ["a"],
    }


@pytest.mark.parametrize(("name", "content"), [
    ("t.csv", "path,label\n"), ("u.csv", "path,label"), ("t.parquet", {"path": pa.array([], "string"), "label": []})
])  # fmt: skip
def test_a_header_alone_is_a_table_without_rows(tmp_path, name, content):
    assert read_table(made(tmp_path / name, content)).to_pydict() == {"path": [], "label": []}


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(words, min_size=3, max_size=3), min_size=1, max_size=6), st.sampled_from(",\t;|"))
def test_what_a_csv_writer_wrote_is_what_is_read(rows, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["a", "b c", "d,;"], *rows])
    with tempfile.TemporaryDirectory() as folder:
        table = read_table(made(Path(folder) / "t.csv", text.getvalue()))
    cleaned = [[None if cell.strip() in ("", "nan", "NaN") else cell.strip() for cell in row] for row in rows]
    assert table.column_names == ["a", "b c", "d,;"]
    assert [list(row.values()) for row in table.to_pylist()] == cleaned


# ---- what is refused


@pytest.mark.parametrize(("name", "content", "said"), [
    ("sheet.xlsx", b"PK", "it must end in .csv"),
    ("empty.csv", b"", "The first line of"),
    ("mark.csv", b"\xef\xbb\xbf", "is empty: it must name the columns"),
    ("blank.csv", "\npath,label\na,b\n", "is empty: it must name the columns"),
    ("wide.csv", "a," * 100_000 + "b\n", "is longer than a header can be"),
    ("utf16.csv", ABC.encode("utf-16"), "UTF-16, or no text at all): save it as CSV in UTF-8"),
    ("utf16be.csv", ABC.encode("utf-16-be"), "UTF-16, or no text at all"),
    ("header.csv", "påth,label\na,b\n".encode("latin-1"), "line 1 has a byte 0xe5 in another encoding"),
    ("late.csv", b"path,label\n" + b"a.jpg,x\n" * 50_000 + "é,y\n".encode("latin-1"), "line 50,002 has a byte 0xe9"),
    ("twice.csv", "path,label, label\na,b,c\n", "has the column 'label' twice"),
    ("twice.parquet", pa.table([["a"], ["b"]], names=["label", "label "]), "has the column 'label' twice"),
    ("header quote.csv", 'path,"label\na,b\n', "has a quote that is not closed"),
    ("long row.csv", "path,label\na,b\nc,d,e\n", "Line 3 of"),
    ("short row.csv", 'path,label\n"a\nb",c\nd\n', "Line 4 of"),
    ("other row.csv", "path,label\na;b\n", "has 1 fields and the header 2, with ',' between them"),
    ("row of bytes.csv", b"path,label\n\xff\n", "has 1 fields and the header 2"),
    ("tabs.csv", "path\tlabel\na\n", "with 'tab' between them"),
    ("open.csv", 'path,label\na,b\nc,"d\ne,f\n', "The row in line 3 of"),
    ("open at the end.csv", 'path,label\na,b\nc,"d\ne,f', "cannot be told from those below it"),
    ("half open.csv", 'path,label\na,"b\nc,"d\ne,f\n', "close its quotes"),
    ("half.csv.gz", gzip.compress(ABC.encode() * 9999, mtime=0)[:-9], "is damaged or no such table"),
    ("sum.csv.gz", gzip.compress(ABC.encode(), mtime=0)[:-6] + b"\0" * 6, "is damaged or no such table"),
    ("rotten.csv.gz", gzip.compress(ABC.encode(), mtime=0)[:10] + b"\xff" * 40, "is damaged or no such table"),
    ("plain.csv.gz", ABC, "is damaged or no such table"),
    ("text.parquet", ABC, "is damaged or no such table"),
    ("empty.parquet", b"", "is damaged or no such table"),
    ("none.parquet", {}, "has no columns"),
])  # fmt: skip
def test_what_is_no_such_table_is_refused_in_one_sentence(tmp_path, name, content, said):
    assert said in refused(made(tmp_path / name, content))


def test_a_table_that_is_not_there_or_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("missing.csv", "folder.csv"):
        assert "name a file that ends in .csv" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_column_that_is_not_there_is_answered_with_the_nearest(tmp_path, name):
    content = {"path": ["a"], "label": ["b"]} if name == "t.parquet" else "path,label\na,b\n"
    assert "Unknown column of" in refused(made(tmp_path / name, content), "path", "lable")
    assert "did you mean 'label'?" in refused(tmp_path / name, "lable")


def test_where_a_delimiter_is_used_that_is_not_known_the_known_ones_are_named(tmp_path):
    message = refused(made(tmp_path / "t.csv", "path label\na b\n"), "label")
    assert "no column 'label', only 'path label'" in message
    assert "comma, tab, semicolon or bar" in message


@pytest.mark.parametrize("content", [{"p": ["a"], "l": [[1]]}, {"p": ["a"], "l": [b"\xff"]}])
def test_a_wanted_column_of_lists_or_bytes_is_refused(tmp_path, content):
    assert "is no text or number" in refused(made(tmp_path / "t.parquet", content), "l")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40), st.sampled_from(["t.csv", "t.tsv", "t.csv.gz", "t.parquet"]))
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_sentence(junk, place, name):
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder) / name, READ if name == "t.parquet" else ABC)
        whole = (Path(folder) / name).read_bytes()
        for content in (junk, whole[:place] + junk + whole[place:], whole[: len(whole) - place] + junk):
            packed = gzip.compress(content) if name.endswith("gz") and place % 2 else content
            said = "nothing"
            try:
                read_table(made(Path(folder) / name, packed))
            except UserError as error:
                said = str(error)
            assert said.isprintable(), "not one line"


@pytest.mark.parametrize("seed", range(3))
def test_parquet_with_flipped_bytes_is_read_or_refused(tmp_path, seed):
    generator = np.random.default_rng(seed)
    whole = made(tmp_path / "t.parquet", {"path": [str(k) for k in range(200)], "label": ["x", "y"] * 100}).read_bytes()
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(len(whole), size=3):
            damaged[place] = int(generator.integers(256))
        try:
            read_table(made(tmp_path / "t.parquet", bytes(damaged)))
            outcomes.add("read")
        except UserError:
            outcomes.add("refused")
    assert "refused" in outcomes


# ---- columns


def column(values, levels=None, where="t.csv"):
    return to_column(pa.table({"v": pa.array(values, pa.large_string())}), "v", levels, where)


def test_levels_are_those_that_occur_in_order_and_empty_fields_are_unknown():
    found = column(["b", None, "a", "b"])
    assert found.levels == ("a", "b")
    assert found.codes.tolist() == [1, -1, 0, 1]
    assert column([]).levels == column([None]).levels == ()


def test_levels_that_are_numbers_are_in_the_order_of_numbers():
    assert column(["10", "2", "1", "-3", "0.5"]).levels == ("-3", "0.5", "1", "2", "10")
    assert column(["10", "2", "one"]).levels == ("10", "2", "one")


@given(st.lists(st.sampled_from(["1", "2", "10", "1.0", "inf", "nan", "x", "-1", "1e3", "01"]), unique=True))
def test_the_order_of_levels_does_not_depend_on_the_order_of_rows(values):
    assert in_order(values) == in_order(values[::-1]) == in_order(sorted(values))


def test_given_levels_keep_their_order_and_others_are_refused_with_their_row():
    assert column(["b", "a"], ("b", "a", "c")).codes.tolist() == [0, 1]
    with pytest.raises(UserError, match=r"Row 3 of t.csv has the v 'c': allowed are b, a, or nothing"):
        column(["b", "c"], ("b", "a"))
    with pytest.raises(UserError, match=r"Row 2 of t.parquet .* \(and 1 more unknown values occur\)"):
        column(["b", "c", "d"], ("b", "a"), "t.parquet")


def test_a_column_of_a_hundred_thousand_values_is_no_label():
    with pytest.raises(UserError, match=r"'v' of t.csv has 100,000 different values, such as '0'"):
        column([str(k) for k in range(100_000)])
    assert len(column([str(k % 1000) for k in range(3000)]).levels) == 1000


@pytest.mark.parametrize("read", [to_column, to_numbers])
def test_a_lacking_column_is_refused_with_the_nearest(read):
    with pytest.raises(UserError, match=r"Unknown column of t.csv 'agee'; did you mean 'age'"):
        read(pa.table({"age": ["1"], "sex": ["f"]}), "agee", where="t.csv")


def numbers(values):
    return to_numbers(pa.table({"v": pa.chunked_array([values], pa.large_string())}), "v", "t.csv")


def test_numbers_may_be_negative_or_missing():
    assert numbers(["-3", "+4", ".5", "1e2", None]).tolist() == pytest.approx([-3, 4, 0.5, 100, np.nan], nan_ok=True)


@pytest.mark.parametrize("wrong", ["x", "1,5", "1_0", "0x1", "--1", "1 2", "१"])
@pytest.mark.parametrize("place", [0, 1, 499, 998])
def test_what_is_no_number_is_refused_with_its_row(wrong, place):
    values = ["1"] * 999
    values[0] = None
    values[place] = wrong
    with pytest.raises(
        UserError, match=rf"Row {place + 2:,} of t.csv has the v '{re.escape(wrong)}', which is no number"
    ):
        numbers([*values, "also wrong"])
