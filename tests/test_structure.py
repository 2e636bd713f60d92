"""The arrows between modules, read from the source: who may import whom, so that two witnesses stay two."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# minifit from the bottom to the top: a module imports only what stands before it
ORDER = (
    "progress",
    "backend",
    "patches",
    "filtering",
    "convolution",
    "layers",
    "losses",
    "optimizers",
    "networks",
    "regressors",
    "workers",
    "checkpoints",
    "augment",
    "fitnets",
    "training",
    "data",
    "experiments",
    "studies",
    "statistics",
    "report",
    "plots",
    "gallery",
    "directory",
    "runs",
    "handover",
    "outline",
    "commandline",
    "several",
    "comparison",
    "summaries",
    "pages",
    "results",
    "gradcheck",
    "audit",
)


def files(*places):
    return [path for place in places for path in sorted((ROOT / place).glob("**/*.py"))]


def named(path):
    return str(path.relative_to(ROOT))


def imports(source, package):
    """Every dotted name that a source imports, `from a import b` being a.b; package: where its dots start from."""
    found = []
    for node in ast.walk(ast.parse(source)):
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
    return imports(path.read_text(encoding="utf-8"), ".".join(path.relative_to(ROOT).parent.parts))


def names_cupy(source):
    """Whether the code says cupy: as a module, a variable, an attribute or a string. Prose may."""
    for node in ast.walk(ast.parse(source)):
        said = getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "value", None)
        if "cupy" in said:
            return True
    return any(name.partition(".")[0].startswith("cupy") for name in imports(source, ""))


def upward(source, package, module):
    """What `module` of minifit (None: the package's own __init__) imports from its own level or above."""
    known = {name: place for place, name in enumerate(ORDER)}
    here = -1 if module is None else known[module]
    inside = [name.split(".")[1] for name in imports(source, package) if name.startswith("minifit.")]
    return sorted({name for name in inside if name != module and known.get(name, -1) >= here})


def module_of(path):
    first = path.relative_to(ROOT / "minifit").parts[0].removesuffix(".py")
    return None if first == "__init__" else first


@pytest.mark.parametrize("path", files("reference"), ids=named)
def test_the_reference_imports_numpy_the_standard_library_and_itself(path):
    allowed = {"numpy", "reference", *sys.stdlib_module_names}
    assert [name for name in imports_of(path) if name.partition(".")[0] not in allowed] == []


@pytest.mark.parametrize("path", files("minifit"), ids=named)
def test_minifit_imports_neither_the_reference_nor_the_tests(path):
    barred = {"reference", "tests", "benchmarks", "run"}
    assert [name for name in imports_of(path) if name.partition(".")[0] in barred] == []


@pytest.mark.parametrize("path", files("minifit"), ids=named)
def test_only_the_backend_names_cupy(path):
    assert path == ROOT / "minifit" / "backend.py" or not names_cupy(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", files("minifit"), ids=named)
def test_inside_minifit_imports_go_only_downward(path):
    module = module_of(path)
    assert module is None or module in ORDER, f"give {module} its place in ORDER"
    package = ".".join(path.relative_to(ROOT).parent.parts)
    assert upward(path.read_text(encoding="utf-8"), package, module) == []


def test_the_command_line_takes_only_data_from_the_reference():
    path = ROOT / "run.py"
    if not path.exists():
        pytest.skip("there is no run.py")
    taken = [name for name in imports_of(path) if name.partition(".")[0] == "reference"]
    assert [name for name in taken if name.split(".")[:2] != ["reference", "paper"]] == []


EVERY = files("minifit", "reference", "tests", "benchmarks") + sorted(ROOT.glob("*.py"))


@pytest.mark.parametrize("path", EVERY, ids=named)
def test_no_module_imports_with_a_star(path):
    assert [name for name in imports_of(path) if name.endswith(".*")] == []


@pytest.mark.parametrize("path", EVERY, ids=named)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


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
    assert upward("from .networks import Conv", "minifit", "layers") == ["networks"]
    assert upward("from ..fitnets import kd", "minifit.data", "data") == []
    assert upward("import minifit.lab.report", "minifit.data", "data") == ["report"]
    assert upward("from minifit import layers", "minifit", "layers") == []
    assert upward("from minifit import UserError", "minifit", "backend") == []
    assert upward("from . import backend", "minifit", None) == ["backend"]


@pytest.mark.parametrize(
    "line", ["import cupy", "from cupy import asarray", "import cupyx.scipy", "x = cupy", "a.cupy.b", "name == 'cupy'"]
)
def test_a_named_cupy_is_caught(line):
    assert names_cupy(line)
    assert not names_cupy(repr(f"prose about cupy: {line}"))
