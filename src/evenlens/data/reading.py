"""Tables that people made: CSV, TSV or Parquet in, columns of text out, or one clear sentence."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from evenlens.data.tables import Column
from evenlens.errors import UserError, unknown

if TYPE_CHECKING:
    import pyarrow

TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
SUFFIXES = (*TEXT_SUFFIXES, ".csv.gz", ".tsv.gz", ".parquet", ".pq")
DELIMITERS = ",\t;|"
UNKNOWN = ("", "nan", "NaN")  # what stands where nothing is known; NA may be Namibia
LONGEST_HEADER, LONGEST_ROW = 100_000, 1 << 24  # bytes
MOST_LEVELS = 1000  # more than that is no label but a number or a name


def is_table(path: Path) -> bool:
    """Say whether a file's name ends like a table's."""
    return path.name.lower().endswith(SUFFIXES)


def read_codes(path: Path, columns: Sequence[str]) -> pyarrow.Table:
    """Read columns as codes with their dictionary where a file has them so: Parquet keeps its types, all else is text.

    Ten million rows of four words are read in a second, where text would take ten and a gigabyte.

    Args:
        path: as in `read_table`.
        columns: those to read.

    Raises:
        UserError: as in `read_table`.
    """
    import pyarrow.parquet

    if path.suffix.lower() not in (".parquet", ".pq") or not path.is_file():
        return read_table(path, columns)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
        check_columns(schema.names, columns, path.name)
        kinds = {name: schema.field(name).type for name in columns}
        text = (pyarrow.string(), pyarrow.large_string())
        words = [name for name, kind in kinds.items() if kind in text]
        with pyarrow.parquet.ParquetFile(path, read_dictionary=words) as file:
            return file.read(list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def read_table(path: Path, columns: Sequence[str] = ()) -> pyarrow.Table:
    """Read a table with every column as text, and null where a field is empty or nan.

    The delimiter of a text file (comma, tab, semicolon or bar) is found by itself. A column without a name gets one by
    its place, such as "column 3". Columns of Parquet that are no single value, such as lists, are left out.

    Args:
        path: CSV, TSV or Parquet, by the name's ending; text may be compressed with gzip.
        columns: the only ones to read, which must be there; all, where none is named.

    Raises:
        UserError: no such file, not such a table, a damaged one, another encoding than UTF-8, a doubled or lacking
            column, a quote that is not closed, a row with more or fewer fields than the header.
    """
    import pyarrow

    if not path.is_file():
        raise UserError(f"There is no table {path}: name a file that ends in {', '.join(SUFFIXES)}.")
    if not is_table(path):
        raise UserError(f"{path} is no table that can be read: it must end in {', '.join(SUFFIXES)}.")
    read = _read_parquet if path.suffix.lower() in (".parquet", ".pq") else _read_text
    try:
        return read(path, columns)
    except (pyarrow.ArrowException, OSError, EOFError, UnicodeError, zlib.error) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    why = "".join(mark if mark.isprintable() else " " for mark in str(error))[:200].strip(" .")
    return UserError(f"{path} is damaged or no such table ({why}): save or fetch it again.")


def check_columns(known: Sequence[str], wanted: Sequence[str], where: str) -> None:
    """Refuse a column that a table does not have, with the nearest one that it has."""
    for name in wanted:
        if name not in known and len(known) == 1:
            raise UserError(
                f"{where or 'The table'} has no column '{name}', only '{known[0]}': if that is several, separate them "
                "by comma, tab, semicolon or bar."
            )
        if name not in known:
            raise unknown(f"column of {where or 'the table'}", name, known)


def _read_parquet(path: Path, columns: Sequence[str]) -> pyarrow.Table:
    import pyarrow.parquet

    found: dict[str, Any] = {}
    with pyarrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        names = _names(path, schema.names)
        check_columns(names, columns, path.name)
        for place, (name, kind) in enumerate(zip(names, schema.types, strict=True)):
            if columns and name not in columns:
                continue
            if not pyarrow.types.is_nested(kind):
                values = file.read([schema.names[place]]).column(0)
                if pyarrow.types.is_dictionary(kind):
                    values = values.cast(kind.value_type)
                try:
                    found[name] = _cleaned(values.cast(pyarrow.large_string()))
                    continue
                except (pyarrow.ArrowNotImplementedError, pyarrow.ArrowInvalid):
                    pass  # bytes that are no text
            if columns:
                raise UserError(f"The column '{name}' of {path.name} ({kind}) is no text or number: choose another.")
    return pyarrow.table(found)


def _read_text(path: Path, columns: Sequence[str]) -> pyarrow.Table:
    import pyarrow.csv

    names, delimiter = header(path)
    check_columns(names, columns, path.name)
    text, num_lines = pyarrow.large_string(), _num_lines(path)
    if num_lines == 1:
        return pyarrow.table({name: pyarrow.array([], text) for name in columns or names})
    # Neither types nor dates are guessed: 007 stays 007, and a column of numbers and words is a column of words.
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, text), include_columns=list(columns), strings_can_be_null=False
    )
    try:
        with _opened(path) as file:
            table = pyarrow.csv.read_csv(
                file,
                pyarrow.csv.ReadOptions(column_names=names, skip_rows=1, block_size=LONGEST_ROW),
                pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert,
            )
    except pyarrow.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise _not_utf8(path) from None
        if "CSV parse error" in str(error):
            _check_rows(path, delimiter, len(names))
        raise
    if num_lines > len(table) + 1:
        _check_rows(path, delimiter, len(names))
    return pyarrow.table({name: _cleaned(table.column(name)) for name in table.column_names})


def header(path: Path) -> tuple[list[str], str]:
    """Find a text table's delimiter and the names in its first line, refusing what is no such table."""
    with _opened(path) as file:
        start = file.read(1 << 20)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        raise UserError(f"{path} is not UTF-8 text (UTF-16, or no text at all): save it as CSV in UTF-8.")
    line = next(iter(start.removeprefix(b"\xef\xbb\xbf").splitlines()), b"")
    if not line.strip() or len(line) > LONGEST_HEADER:
        what = "is longer than a header can be" if line.strip() else "is empty"
        raise UserError(f"The first line of {path} {what}: it must name the columns.")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    if text.count('"') % 2:
        raise UserError(f"The first line of {path} has a quote that is not closed: it must name the columns.")
    fields = {mark: _fields(text, mark) for mark in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda mark: len(fields[mark]))
    return _names(path, fields[delimiter]), delimiter


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return [line]


def _names(path: Path, given: Sequence[str]) -> list[str]:
    """Trim the columns' names, give one to those that have none, and refuse two that are alike."""
    names = [name.strip() or f"column {place}" for place, name in enumerate(given, 1)]
    if not names:
        raise UserError(f"{path} has no columns.")
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise UserError(f"{path} has the column '{doubled}' twice: rename or remove one of the two.")
    return names


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _not_utf8(path: Path) -> UserError:
    """Make the error for text in another encoding: it says where the first such byte is."""
    place = ""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                place = f" (line {number:,} has a byte {line[error.start]:#04x} in another encoding)"
                break
    return UserError(f"{path} is not UTF-8{place}: save it as CSV in UTF-8.")


def _num_lines(path: Path) -> int:
    number, last = 0, b"\n"
    with _opened(path) as file:
        while chunk := file.read(1 << 24):
            number += max(chunk.count(b"\n"), chunk.count(b"\r"))  # alone, either ends a line
            last = chunk[-1:]
    return number + (last not in b"\r\n")


def _check_rows(path: Path, delimiter: str, num_fields: int) -> None:
    """Refuse a row of another length, and a quote that is not closed, which would swallow the rows below it unseen."""
    start = 1
    mark = "tab" if delimiter == "\t" else delimiter
    with _opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            for row in rows:
                if row and len(row) != num_fields:
                    raise UserError(
                        f"Line {start:,} of {path} has {len(row)} fields and the header {num_fields}, with '{mark}' "
                        "between them: quote fields that hold it, and mend this line."
                    )
                start = rows.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"The row in line {start:,} of {path} cannot be told from those below it ({error}): close its quotes, "
                "and double those that are meant."
            ) from None


def _cleaned(values: Any) -> Any:
    """Trim white space, and make null what says that nothing is known."""
    import pyarrow
    import pyarrow.compute as compute

    trimmed = compute.utf8_trim_whitespace(values)
    return compute.if_else(compute.is_in(trimmed, pyarrow.array(UNKNOWN, trimmed.type)), None, trimmed)


def row_of(where: str, row: int) -> str:
    """Say where a row is: in text, the header is the first."""
    parquet = where.lower().endswith((".parquet", ".pq"))
    return f"Row {row + 1 if parquet else row + 2:,} of {where or 'the table'}"


def to_column(table: pyarrow.Table, name: str, levels: Sequence[str] | None = None, where: str = "") -> Column:
    """Make a column of levels of a column of text; empty fields are not known.

    Args:
        table: as `read_table` gives it.
        name: of the column.
        levels: all values that are allowed, in the order of their codes; None takes those that occur, sorted (as
            numbers, where all are).
        where: the file's name, for messages.

    Raises:
        UserError: no such column, a value that is not allowed, or too many different ones for a label.
    """
    check_columns(table.column_names, [name], where)
    encoded = table.column(name).combine_chunks().dictionary_encode()
    if levels is None and len(encoded.dictionary) > MOST_LEVELS:
        raise UserError(
            f"The column '{name}' of {where or 'the table'} has {len(encoded.dictionary):,} different values, such as "
            f"{encoded.dictionary[0].as_py()!r}: that is no label or group; choose another column, or give bins for a "
            "number."
        )
    found = encoded.dictionary.to_pylist()
    levels = in_order(found) if levels is None else levels
    code = {level: number for number, level in enumerate(levels)}
    strange = [value for value in found if value not in code]
    codes = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)
    if strange:
        row = int(np.flatnonzero(codes == found.index(strange[0]))[0])
        more = f" (and {len(strange) - 1:,} more unknown values occur)" if len(strange) > 1 else ""
        raise UserError(
            f"{row_of(where, row)} has the {name} {strange[0]!r}{more}: allowed are {', '.join(levels)}, or nothing."
        )
    translate = np.array([*(code[value] for value in found), -1], dtype=np.int64)
    return Column(tuple(levels), translate[codes])


def in_order(values: Sequence[str]) -> list[str]:
    """Sort words, as numbers where all of them are numbers."""
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return sorted(values)
    if not all(isfinite(number) for number in numbers.values()):
        return sorted(values)
    return sorted(values, key=lambda value: (numbers[value], value))


def to_numbers(table: pyarrow.Table, name: str, where: str = "") -> np.ndarray:
    """Make (N,) float64 of a column of text; empty fields are NaN.

    Raises:
        UserError: no such column, or a value that is no number.
    """
    import pyarrow

    def cast(values: Any) -> Any:
        return values.cast(pyarrow.float64())

    check_columns(table.column_names, [name], where)
    values = table.column(name)
    try:
        return cast(values).fill_null(float("nan")).to_numpy()
    except pyarrow.ArrowInvalid:
        start, stop = 0, len(values)  # the first that is no number lies in between
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            cast(values.slice(start, middle - start))
            start = middle
        except pyarrow.ArrowInvalid:
            stop = middle
    raise UserError(
        f"{row_of(where, start)} has the {name} {values[start].as_py()!r}, which is no number: write one, or nothing "
        "where it is not known."
    )
