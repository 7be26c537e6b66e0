"""Tables of results -> results. Each row is one number: of a method, a group and, where it says so, a label."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evenlens.audits.lint.results import ALL, FINEST, Key, Number, Result
from evenlens.audits.lint.runs import read_runs
from evenlens.data.reading import check_columns, read_table, row_of, to_numbers
from evenlens.errors import UserError, unknown

if TYPE_CHECKING:
    import pyarrow

ROLES: dict[str, tuple[str, ...]] = {
    "method": ("method", "algorithm", "approach", "model"),
    "group": ("group", "subgroup", "sensitive", "demographic"),
    "rate": ("accuracy", "acc", "rate", "recall", "correct", "num_correct", "error_rate", "error", "value"),
    "n": ("n", "images", "num_images", "n_images", "samples", "num_samples", "n_samples", "support", "count", "total"),
    "label": ("label", "class", "true_label", "y"),
    "seed": ("seed", "random_seed", "run", "repeat", "trial", "replicate"),
    "part": ("part", "split", "partition", "subset"),
    "dataset": ("dataset", "data_set", "benchmark", "protocol", "task", "target"),
    "metric": ("metric", "measure"),
    "epoch": ("epoch", "checkpoint", "iteration"),
    "settings": (),
    "selected": ("selected", "chosen", "kept", "is_best"),
    "selected_epoch": ("selected_epoch", "best_epoch", "chosen_epoch"),
    "selection": ("selection", "selected_on", "selected_by", "select_on", "select"),
    "n_train": ("n_train", "train_n", "train_images", "num_train"),
    "seeds": ("seeds", "num_seeds", "n_seeds", "runs", "num_runs", "n_runs"),
    "spread": ("std", "sd", "std_dev", "standard_deviation"),
}
"""What a column can be, with the names by which it is found: the first of them that the table has.

Capitals do not matter, and a space, a hyphen or a dot is as good as an underscore. `group`, `dataset` and `settings`
can be several columns. `n` is the number of images that the rate is a share of, and `correct` how many of them were
right. `settings` is what else was tried, such as a learning rate; these columns are found where rows would be alike
without them, and can be named.
"""
PEOPLE = ("race", "ethnicity", "gender", "sex", "age", "age_group", "skin", "skin_tone", "skin_type", "fitzpatrick")
"""Where no column is called group: all of these that there are, crossed."""
SEVERAL = ("group", "dataset", "settings")
COUNTS = ("correct", "num_correct")
ERRORS = ("error_rate", "error")  # the rate is what they leave
OVERALL = ("all", "overall", "total", "everyone")  # instead of a group or label: over all of them
SUMMARIES = (
    "average", "avg", "mean", "macro_avg", "micro_avg", "weighted_avg", "worst", "worst_group", "best", "best_group",
    "min", "max", "gap", "std",
)  # fmt: skip
"""Instead of a group or label: such rows are about none, and are left out."""
PARTS = {"valid": "val", "validation": "val", "dev": "val", "testing": "test", "training": "train"}
YES = ("1", "true", "yes", "y", "x")
MOST_ROWS, MOST = 1_000_000, 1_000_000_000


def read_results(tables: Sequence[Path | str], named: Mapping[str, str | Sequence[str]] | None = None) -> list[Result]:
    """Read tables of results, and folders of runs of evenlens.

    Args:
        tables: CSV, TSV or Parquet files, and folders that are runs or hold some.
        named: columns that are not called as in `ROLES`, by role: {"rate": "top-1", "group": ["race", "sex"]}. Where a
            table has a column of metrics, `rate` is one of them.

    Raises:
        UserError: no such table, column or role, a value that is not allowed, or rows that nothing tells apart.
    """
    paths = [Path(path) for path in ([tables] if isinstance(tables, Path | str) else tables)]
    if not paths:
        raise UserError("There is nothing to look at: name tables of results, or folders of runs.")
    doubled = next((path for path in paths if paths.count(path) > 1), None)
    if doubled:
        raise UserError(f"{doubled} is named twice: name each table once.")
    wanted = {role: (given,) if isinstance(given, str) else tuple(given) for role, given in (named or {}).items()}
    for role, columns in wanted.items():
        if role not in ROLES:
            raise unknown("role of a column", role, ROLES)
        if not columns or (len(columns) > 1 and role not in SEVERAL):
            raise UserError(f"The {role} of a row is one column, not {len(columns)}: name one.")
    results = []
    for path in paths:
        name = str(path) if sum(other.name == path.name for other in paths) > 1 else path.name or str(path)
        reading = (
            _Reading(read_runs(path), name, {}, True) if path.is_dir() else _Reading(read_table(path), name, wanted)
        )
        results += reading.results()
    return results


@lru_cache(4096)
def plain(name: str) -> str:
    """Write a name as names are compared: small letters, and underscores between words."""
    return re.sub(r"[\s.\-]+", "_", name.strip().casefold())


class _Reading:
    """One table on its way to results; in one of runs a word such as "all" is a name like any other."""

    def __init__(
        self, table: pyarrow.Table, name: str, wanted: Mapping[str, Sequence[str]], of_runs: bool = False
    ) -> None:
        if not 0 < len(table) <= MOST_ROWS:
            raise UserError(
                f"{name} has {len(table):,} rows: a table of results has a row for each method and group, and at most "
                f"{MOST_ROWS:,}."
            )
        self.table, self.name, self.of_runs = table, name, of_runs
        self.columns = self._find(wanted)
        for role, what in (("group", "groups"), ("rate", "rates")):
            if role not in self.columns:
                raise self._lacking(role, what)
        self.keys, about_groups = self._keys()
        self.kind, of_metric = self._metric(wanted.get("rate", ("",))[0])
        self.kept = [row for row in range(len(table)) if about_groups[row] and of_metric[row]]
        if all(ALL in self.keys[row].group for row in self.kept):
            raise UserError(f"{name} has no row of a single group: a gap is between groups, so write a row for each.")

    # ---- columns

    def _find(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Give the columns of each role that there is."""
        names = self.table.column_names
        known = {plain(column): column for column in reversed(names)}
        taken = {column for columns in wanted.values() for column in columns}
        found: dict[str, list[str]] = {}
        for role, usual in ROLES.items():
            of_metrics = role == "rate" and ("metric" in wanted or {*ROLES["metric"]} & {*known})
            if role in wanted and not (of_metrics and wanted[role][0] not in names):
                check_columns(names, wanted[role], self.name)
                found[role] = list(wanted[role])
                continue
            there = [known[name] for name in usual if name in known and known[name] not in taken]
            if role == "group" and not there:
                there = [known[name] for name in PEOPLE if name in known and known[name] not in taken]
            elif role != "dataset":
                there = there[:1]
            there.sort(key=names.index)
            if role == "epoch" and there and not self._is_numeric(there[0]):
                continue  # "best.pt" is a setting like any other
            if there:
                found[role] = there
        return found

    def _is_numeric(self, name: str) -> bool:
        try:
            to_numbers(self.table, name)
        except UserError:
            return False
        return True

    def _lacking(self, role: str, what: str) -> UserError:
        names = (*ROLES[role], *(PEOPLE if role == "group" else ()))
        of_images = {"prediction", "predicted", "pred"} & {plain(name) for name in self.table.column_names}
        more = ", and predictions with a row for each image have to be counted first" if of_images else ""
        return UserError(
            f"{self.name} has no column of {what}: say which one it is ({role}=COLUMN), or call it "
            f"{', '.join(names[:-1])} or {names[-1]}; a table of results has a row for each method and group{more}."
        )

    def _text(self, role: str, default: str | None = None) -> list[str]:
        """Give a role's column of words, of several the words with commas; without a default none may be missing."""
        columns = []
        for name in self.columns.get(role, []):
            values = self.table.column(name).to_pylist()
            if default is None and None in values:
                raise UserError(
                    f"{row_of(self.name, values.index(None))} has no {name}: write one in every row, and 'all' "
                    "in those that are over all of them."
                )
            columns.append([value or default or "" for value in values])
        if not columns:
            return [default or ""] * len(self.table)
        return [", ".join(value for value in values if value) for values in zip(*columns, strict=True)]

    def _numbers(self, role: str, default: float = math.nan, whole: bool = True) -> np.ndarray:
        """Give a role's column of numbers."""
        if role not in self.columns:
            return np.full(len(self.table), default)
        name = self.columns[role][0]
        values = to_numbers(self.table, name, self.name)
        wrong = (values < 0) | (values > MOST) | (whole & (values != np.round(values)) & ~np.isnan(values))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            kind = "a whole number" if whole else "a number"
            raise UserError(
                f"{row_of(self.name, row)} has the {name} {values[row]:g}: it must be {kind} from 0 to {MOST:,}."
            )
        return values

    # ---- rows

    def _keys(self) -> tuple[list[Key], list[bool]]:
        """Say whom each row is about, and whether that is somebody: a mean or a gap is about nobody."""
        words = [self._required(name) for name in self.columns["group"]]
        words.append(self._text("label") if "label" in self.columns else [ALL] * len(self.table))
        about = [self.of_runs or not any(plain(word) in SUMMARIES for word in row) for row in zip(*words, strict=True)]
        if not self.of_runs:
            words = [[ALL if plain(word) in OVERALL else word for word in column] for column in words]
        return [Key(tuple(row[:-1]), row[-1]) for row in zip(*words, strict=True)], about

    def _required(self, name: str) -> list[str]:
        values = self.table.column(name).to_pylist()
        if None in values:
            raise UserError(
                f"{row_of(self.name, values.index(None))} has no {name}: name a group in every row, and write "
                "'all' in those that are over all groups."
            )
        return values

    def _metric(self, wanted: str) -> tuple[str, list[bool]]:
        """Say what the rate is, and which rows are of it."""
        metrics = self._text("metric")
        if "metric" not in self.columns:
            return plain(self.columns["rate"][0]), [True] * len(metrics)
        known = list(dict.fromkeys(metrics))
        names = [plain(wanted)] if wanted and wanted not in self.table.column_names else ROLES["rate"]
        chosen = next((metric for name in names for metric in known if plain(metric) == name), None)
        if chosen is None:
            raise unknown(f"metric of {self.name} (rate=METRIC names one)", wanted or "accuracy", known)
        return plain(chosen), [metric == chosen for metric in metrics]

    def _rates(self, n: np.ndarray) -> _Rates:
        """Read the rates of the rows that are kept."""
        import pyarrow
        import pyarrow.compute as compute

        name = self.columns["rate"][0]
        used = np.zeros(len(self.table), dtype=bool)
        used[self.kept] = True
        written = compute.if_else(pyarrow.array(used), self.table.column(name), None)
        signs = bool(compute.any(compute.ends_with(written, "%")).as_py())
        table = pyarrow.table({name: compute.utf8_rtrim(written, characters=" %")})
        values = to_numbers(table, name, self.name)
        known = values[~np.isnan(values)]
        if self.kind in COUNTS and not (np.any(known != np.round(known)) and known.max() <= 1):
            return _Rates(self._shares(values, n, name), np.full(len(values), FINEST), FINEST, 1)
        scale = 100 if signs or np.any(known > 1) else 1
        if scale > 1 and not signs and np.mean(known <= 1) > 0.5:
            row = int(np.nanargmax(values))
            raise UserError(
                f"{row_of(self.name, row)} has the {name} {values[row]:g}, and most others lie between 0 and 1: write "
                "all as shares, or all as per cent."
            )
        wrong = (values < 0) | (values > scale)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise UserError(
                f"{row_of(self.name, row)} has the {name} {written[row]}: a rate is a share from 0 to 1, or per cent "
                "from 0 to 100."
            )
        share = 1 - values / scale if self.kind in ERRORS else values / scale
        own = np.array([max(_last_digit(text) / scale, FINEST) for text in table.column(name).to_pylist()])
        return _Rates(share, own, float(own[self.kept].min()), scale)

    def _shares(self, right: np.ndarray, n: np.ndarray, name: str) -> np.ndarray:
        """Make shares of numbers of images that were predicted right."""
        wrong = ~np.isnan(right) & ~((right >= 0) & (right <= n))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            of = "no number of images" if np.isnan(n[row]) else f"{n[row]:,.0f} images"
            raise UserError(
                f"{row_of(self.name, row)} has the {name} {right[row]:g} and {of}: it is how many of the n images were "
                "right; a share belongs into a column called accuracy."
            )
        return np.divide(right, n, out=np.full(len(n), math.nan), where=n > 0)

    # ---- results

    def results(self) -> list[Result]:
        """Gather the rows of each method, setting, seed, epoch and part."""
        base = self._base()
        n = self._numbers("n")
        rates = self._rates(n)
        epochs, selected_epochs = self._numbers("epoch", whole=False), self._numbers("selected_epoch", whole=False)
        n_train, spread = self._numbers("n_train"), self._numbers("spread", whole=False) / rates.scale
        seeds = self._numbers("seeds", math.nan if "spread" in self.columns else 1.0)
        selected = [plain(word) in YES for word in self._text("selected", "no")]
        selection = self._text("selection", "")
        settings = self._settings(base, epochs)
        gathered: dict[tuple, list[int]] = {}
        for row, setting in zip(self.kept, settings, strict=True):
            gathered.setdefault((base[row], setting, _known(epochs[[row]])), []).append(row)
        return [
            Result(
                self.name, dataset, method, setting, seed, part, epoch,
                {
                    self.keys[row]: Number(
                        float(n[row]), float(rates.share[row]), rates.unit, float(rates.own[row]),
                        row_of(self.name, row), float(n_train[row]), float(seeds[row]), float(spread[row]),
                    )
                    for row in rows
                },
                any(selected[row] for row in rows), _known(selected_epochs[rows]),
                next((selection[row] for row in rows if selection[row]), ""),
            )
            for ((dataset, method, seed, part), setting, epoch), rows in gathered.items()
        ]  # fmt: skip

    def _base(self) -> list[tuple[str, str, str, str]]:
        """Say of each row the data set, method, seed and part; the file's name says what no column says."""
        stem = Path(self.name).name.split(".")[0]
        words = {PARTS.get(word, word) for word in re.split(r"[^a-z]+", stem.lower())} & {"train", "val", "test"}
        usual = words.pop() if len(words) == 1 else "test"
        parts = [plain(word).removesuffix("_set") for word in self._text("part", usual)]
        methods = self._text("method") if "method" in self.columns else [stem] * len(parts)
        return list(zip(
            self._text("dataset", ""), methods, self._text("seed", ""), [PARTS.get(word, word) for word in parts],
            strict=True,
        ))  # fmt: skip

    def _settings(self, base: list[tuple[str, str, str, str]], epochs: np.ndarray) -> list[str]:
        """Say of each row that is kept with which settings it was made, as far as they vary for its method."""
        claimed = {column for columns in self.columns.values() for column in columns}
        names = self.columns.get("settings") or [name for name in self.table.column_names if name not in claimed]
        values = {name: self.table.column(name).to_pylist() for name in names}
        extras = {name: [column[row] or "" for row in self.kept] for name, column in values.items()}
        slices = [base[row] for row in self.kept]
        rows = [(base[row], self.keys[row], _known(epochs[[row]])) for row in self.kept]
        chosen = names if "settings" in self.columns else _telling_apart(slices, rows, extras)
        first: dict[tuple, int] = {}
        for place, row in enumerate(self.kept):
            twin = first.setdefault((rows[place], *(extras[name][place] for name in chosen)), row)
            if twin != row:
                again = row_of(self.name, row).lower().removesuffix(f" of {self.name}".lower())
                raise UserError(
                    f"{row_of(self.name, twin)} and {again} are both of {base[row][1]} and {self.keys[row]}, and "
                    "nothing tells them apart: add a column (seed, part, epoch), name the columns of settings "
                    "(settings=COLUMN), or remove a row."
                )
        tried: dict[tuple, set[str]] = {}
        for name in chosen:
            for one, value in zip(slices, extras[name], strict=True):
                tried.setdefault((one[:2], name), set()).add(value)
        return [
            ", ".join(f"{name}={extras[name][place]}" for name in chosen if len(tried[one[:2], name]) > 1)
            for place, one in enumerate(slices)
        ]


class _Rates(NamedTuple):
    """Rates of a table: (N,) shares, (N,) what one in the last digit of each is worth, the least of these, 1 or 100."""

    share: np.ndarray
    own: np.ndarray
    unit: float
    scale: int


def _known(values: np.ndarray) -> float | None:
    """Give the first number that is known."""
    known = values[~np.isnan(values)]
    return float(known[0]) if len(known) else None


def _last_digit(text: str | None) -> float:
    """Give what one in the last digit of a number is worth: 0.01 for 0.85, 1e-05 for 1.2e-4, 1 for none."""
    mantissa, _, exponent = (text or "").lower().partition("e")
    return float(10.0 ** -max(len(mantissa.partition(".")[2]) - int(exponent or 0), 0))


def _telling_apart(slices: list[tuple], rows: list[tuple], extras: dict[str, list[str]]) -> list[str]:
    """Choose few columns that tell rows apart, of those each of whose values comes with all groups of its slice."""

    def apart(names: list[str]) -> bool:
        return len({*zip(rows, *(extras[name] for name in names), strict=True)}) == len(rows)

    if apart([]):
        return []
    whole: dict[tuple, set[Key]] = {}
    for one, (_, key, _) in zip(slices, rows, strict=True):
        whole.setdefault(one, set()).add(key)
    chosen = []
    for name, values in extras.items():
        each: dict[tuple, set[Key]] = {}
        for one, (_, key, _), value in zip(slices, rows, values, strict=True):
            each.setdefault((one, value), set()).add(key)
        if len(each) > len(whole) and all(whole[one] == found for (one, _), found in each.items()):
            chosen.append(name)
    for name in reversed(chosen.copy()):
        if apart([other for other in chosen if other != name]):
            chosen.remove(name)
    return chosen
