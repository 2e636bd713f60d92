"""The arrows between modules, read from the source: the paper knows no laboratory, and two witnesses stay two."""

import ast
import re
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each wing from the bottom to the top: a module imports only what stands before it, and the paper before the lab.
PAPER = (
    "settings",
    "backend",
    "schema",
    "files",
    "stages",
    "kernels",
    "patches",
    "transforms",
    "stacked",
    "fast_convolution",
    "convolution",
    "layers",
    "composites",
    "losses",
    "optimizers",
    "networks",
    "spec",
    "regressors",
    "data.progress",
    "data.augment",
    "data.preprocessing",
    "data.files",
    "data.images",
    "data.stored",
    "data.mnist",
    "data.cifar",
    "data.svhn",
    "data.digits",
    "data.own",
    "data.faces",
    "data",
    "model",
    "experiments",
    "task",
    "fitnets",
    "greedy",
    "baselines",
    "gradcheck",
    "problems",
    "audit",
)
LAB = (
    "lab",
    "lab.parallel",
    "lab.jobs",
    "lab.watchdog",
    "lab.mpi",
    "lab.ranks",
    "lab.files",
    "lab.records",
    "lab.options",
    "lab.rundir",
    "lab.export",
    "lab.teachers",
    "lab.sets",
    "lab.training",
    "lab.compare",
    "lab.report",
    "lab.pages",
    "lab.plots",
    "lab.pictures",
    "lab.plan",
    "lab.runner",
    "lab.publish",
    "lab.train",
    "lab.tables",
    "lab.speed",
    "lab.commands",
    "lab.cli",
    "lab.__main__",  # the command line, under the name by which Python asks for it
)
ORDER = PAPER + LAB

# The names of stages and methods are written where they are defined, where they are set, and where the paper is quoted.
WORDS = re.compile(r"(?<![a-z0-9])(backprop|kd|fitnet)(?![a-z0-9])")
WHOLE = re.compile(r"(?<![\w-])(backprop|kd|fitnet)(?![\w-])")  # not within another method's name: labels-then-kd
NAMED_WITHIN = ("minifit/baselines.py",)
NAMED_IN = (
    "minifit/fitnets.py",
    "minifit/experiments.py",
    "reference/paper.py",
)


def files(*places):
    return [path for place in places for path in sorted((ROOT / place).glob("**/*.py"))]


def named(path):
    return str(path.relative_to(ROOT))


@cache
def text(path):
    return path.read_text(encoding="utf-8")


parsed = cache(ast.parse)


def in_lab(path):
    return named(path).startswith("minifit/lab/")


MINIFIT, REFERENCE, BENCHMARKS = files("minifit"), files("reference"), files("benchmarks")
THE_PAPER = [path for path in MINIFIT if not in_lab(path)]
EVERY = [*MINIFIT, *REFERENCE, *BENCHMARKS, *files("tests"), *sorted(ROOT.glob("*.py"))]


def imports(source, package, on_demand=True):
    """Every dotted name that a source imports, `from a import b` being a.b; package: where its dots start from.

    on_demand: also what a module's `__getattr__` imports, after the module itself
    """
    found, body = [], parsed(source).body
    if not on_demand:
        body = [node for node in body if getattr(node, "name", None) != "__getattr__"]
    for node in (inner for outer in body for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found += [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return found


def imports_of(path):
    return imports(text(path), ".".join(path.relative_to(ROOT).parent.parts))


def at_once(path):
    """What a module imports when it is imported itself."""
    return imports(text(path), ".".join(path.relative_to(ROOT).parent.parts), on_demand=False)


def module(path):
    """The dotted name of a file: of a package, its folder's."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def longest(name, known):
    """The module among those known that a dotted name is, or is in; None: none of them."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def upward(source, package, here):
    """What a module of minifit ("": the package's own __init__) imports from its own level or above."""
    level = {f"minifit.{name}": place for place, name in enumerate(ORDER)}
    found = imports(source, package, on_demand=here != "")
    taken = {longest(name, level) for name in found} - {None, f"minifit.{here}"}
    return sorted(name for name in taken if level[name] >= level.get(f"minifit.{here}", -1))


def names_cupy(source):
    """Whether the code says cupy: as a module, a variable, an attribute or a string. Prose may."""
    for node in ast.walk(parsed(source)):
        said = getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "value", None)
        if "cupy" in said:
            return True
    return any(name.partition(".")[0].startswith("cupy") for name in imports(source, ""))


def names_methods(source, words=WORDS):
    """The identifiers and strings of a source that name a method or a stage; docstrings and comments are prose."""
    tree, prose, found = parsed(source), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.add(node.value)
        fields = ("id", "attr", "name", "asname", "arg", "module")
        said = [getattr(node, field, None) for field in fields]
        if isinstance(node, ast.Constant) and node not in prose:
            said.append(node.value)
        found += [word for word in said if isinstance(word, str) and words.search(word)]
    return found


@pytest.mark.parametrize("path", REFERENCE, ids=named)
def test_the_reference_imports_numpy_the_standard_library_and_itself(path):
    allowed = {"numpy", "reference", *sys.stdlib_module_names}
    assert [name for name in imports_of(path) if name.partition(".")[0] not in allowed] == []


@pytest.mark.parametrize("path", MINIFIT, ids=named)
def test_minifit_imports_neither_the_reference_nor_the_tests_and_the_lab_only_what_the_papers_say(path):
    barred = {"reference", "tests", "benchmarks", "run"}
    taken = [name for name in imports_of(path) if name.partition(".")[0] in barred]
    assert [name for name in taken if not (in_lab(path) and longest(name, {"reference.paper"}))] == []


@pytest.mark.parametrize("path", THE_PAPER, ids=named)
def test_the_paper_never_imports_the_lab_nor_speaks_of_it(path):
    assert [name for name in imports_of(path) if longest(name, {"minifit.lab"})] == []
    assert re.findall(r".*\blab\b.*", text(path)) == []


@pytest.mark.parametrize("path", MINIFIT, ids=named)
def test_inside_each_wing_imports_go_only_downward(path):
    here = module(path).removeprefix("minifit").removeprefix(".")
    assert not here or here in ORDER, f"give {here} its place in PAPER or LAB"
    assert upward(text(path), ".".join(path.relative_to(ROOT).parent.parts), here) == []


def test_every_place_in_the_order_is_taken():
    there = {module(path) for path in MINIFIT}
    assert [name for name in ORDER if f"minifit.{name}" not in there] == []


def test_no_imports_go_in_a_circle():
    known = {module(path): path for path in (*MINIFIT, *REFERENCE, *BENCHMARKS)}
    arrows = {name: {longest(i, known) for i in at_once(path)} - {None, name} for name, path in known.items()}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("path", MINIFIT, ids=named)
def test_only_the_backend_names_cupy(path):
    assert path == ROOT / "minifit" / "backend.py" or not names_cupy(text(path))


@pytest.mark.parametrize("path", [*MINIFIT, *REFERENCE, ROOT / "run.py"], ids=named)
def test_methods_and_stages_are_named_where_they_are_defined_set_and_quoted(path):
    words = WHOLE if named(path) in NAMED_WITHIN else WORDS
    assert named(path) in NAMED_IN or names_methods(text(path), words) == []


@pytest.mark.parametrize("path", EVERY, ids=named)
def test_no_module_imports_with_a_star(path):
    assert [name for name in imports_of(path) if name.endswith(".*")] == []


@pytest.mark.parametrize("path", EVERY, ids=named)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(parsed(text(path)))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import minifit.layers as l, numpy", ["minifit.layers", "numpy"]),
        ("from minifit import layers", ["minifit.layers"]),
        ("from minifit.layers import Linear", ["minifit.layers.Linear"]),
        ("from ..layers import *", ["minifit.layers.*"]),
        ("from .. import layers", ["minifit.layers"]),
        ("from .digits import read", ["minifit.data.digits.read"]),
        ("def f():\n    import reference.ops", ["reference.ops"]),
        ("importlib.import_module('cupy')", ["cupy"]),
    ],
)
def test_no_way_of_importing_escapes(line, found):
    assert imports(line, "minifit.data") == found


def test_an_upward_import_is_caught():
    assert upward("from .networks import Conv", "minifit", "layers") == ["minifit.networks"]
    assert upward("from ..fitnets import Stage", "minifit.data", "data.augment") == ["minifit.fitnets"]
    assert upward("from minifit.data import mnist", "minifit.data", "data.files") == ["minifit.data.mnist"]
    assert upward("import minifit.lab.report", "minifit", "audit") == ["minifit.lab.report"]
    assert upward("from minifit.lab import runner", "minifit.lab", "lab.report") == ["minifit.lab.runner"]
    assert upward("from minifit import fitnets", "minifit.lab", "lab.report") == []
    assert upward("from minifit import layers", "minifit", "layers") == []
    assert upward("from minifit import UserError", "minifit", "backend") == []
    assert upward("from . import backend", "minifit", "") == ["minifit.backend"]
    assert upward("def __getattr__(name):\n    from . import backend", "minifit", "") == []
    assert upward("def __getattr__(name):\n    from . import task", "minifit", "layers") == ["minifit.task"]


@pytest.mark.parametrize(
    "line", ["import cupy", "from cupy import asarray", "import cupyx.scipy", "x = cupy", "a.cupy.b", "name == 'cupy'"]
)
def test_a_named_cupy_is_caught(line):
    assert names_cupy(line)
    assert not names_cupy(repr(f"prose about cupy: {line}"))


@pytest.mark.parametrize(
    "line",
    [
        "if name == 'kd': pass",
        "f'{x}: fitnet.h5'",
        "def backprop(): pass",
        "fitnets.kd(1)",
        "from minifit.fitnets import kd as x",
        "f(kd_lam=1)",
        "def f(fitnet): pass",
        "class backprop_step: pass",
    ],
)
def test_a_named_method_is_caught(line):
    assert names_methods(line)
    assert not names_methods(f'"""Prose: {line}"""  # and kd')
    assert not names_methods("kd_ensemble(); 'labels-then-kd'", WHOLE) and names_methods("kd(); 'kd'", WHOLE)
    assert not names_methods("from minifit import fitnets; network = FITNET_1, 'cifar10-fitnet1', 'FitNet 1', skd")
