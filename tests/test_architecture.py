"""The shape of the house: which way the arrows go, and who may name whom."""

import ast
import re
from pathlib import Path

import pytest

import evenlens
from evenlens import registry

HOME = Path(evenlens.__file__).parent
NAMES = registry.module_names("evenlens.methods") + registry.module_names("evenlens.datasets")
# pruning/ holds the parts of those who prune, and a score is known by the name of who first used it; what a student of
# a generator learns by is called as in the literature, whatever a method is called
HOMES = {"methods", "datasets", "pruning", "students"}
OUTSIDE = [path for path in HOME.rglob("*.py") if not HOMES & {part.name for part in path.parents}]
# From the ground up: a module may import from its own floor and those below it.
FLOORS = [
    ["errors", "files", "processes", "registry", "weights"],
    ["config"],
    ["trackers"],
    ["following"],
    ["metrics"],
    ["data", "datasets", "audits", "dividing", "engine", "probes", "statistics", "view", "views"],
    ["merging", "tone_leak", "verification", "view_sheet"],
    ["nets", "losses"],
    ["foreign", "measuring", "pruning", "quantising"],
    ["method"],
    ["methods", "model_file", "viewed"],
    ["run_folder"],
    ["selecting"],
    ["plan"],
    ["run", "launching"],
    ["stores", "workers", "scheduling", "sweep_records"],
    ["leakage", "predict", "sketching", "searching", "search_curve", "recipes", "sweeps", "export"],
    ["candidates", "compressing", "generation", "shipping"],
    ["report"],
    ["api", "cards", "expected", "generation_study", "reproducing"],
    ["terminal"],
    [
        "cli_audit",
        "cli_compress",
        "cli_data",
        "cli_export",
        "cli_generate",
        "cli_reproduce",
        "cli_sketch",
        "cli_sweep",
        "cli_tone_leak",
        "cli_track",
        "cli_verify",
    ],
    ["cli"],
    ["__main__"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def code_only(path):
    """The file without its docstrings: examples there may name anything."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and body
            and ast.get_docstring(node) is not None
        ):
            body[0].value = ast.Constant("")
    return ast.unparse(tree)


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(HOME)))
def test_nothing_outside_their_folders_names_a_method_or_a_data_set(path):
    found = re.findall(rf"\b({'|'.join(NAMES)})\b", code_only(path))
    assert not found, f"{path.name} names {sorted(set(found))}"


def imported(path):
    """The modules of evenlens that a file imports, by their place below the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evenlens"):
            base = node.module.split(".")[1:]
            for alias in node.names:
                yield base[0] if base else alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("evenlens."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize("path", list(HOME.rglob("*.py")), ids=lambda path: str(path.relative_to(HOME)))
def test_the_arrows_go_one_way(path):
    place = path.relative_to(HOME).with_suffix("").parts[0]
    if place == "__init__":
        return
    assert place in FLOOR, f"{place} has no floor yet: add it where it belongs"
    for name in imported(path):
        if name not in ("__version__", *evenlens.__all__):
            assert FLOOR[name] <= FLOOR[place], f"{place} imports {name}, which lies above it"


def test_modules_and_functions_are_short():
    """About 300 lines a module and 40 a function; what is longer needs a reason, and a line here."""
    longer = {}
    for path in HOME.rglob("*.py"):
        source = path.read_text()
        if len(source.splitlines()) > 420:
            longer[path.name] = len(source.splitlines())
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno - node.lineno) > 60:
                longer[f"{path.name}:{node.name}"] = node.end_lineno - node.lineno
    assert not longer
