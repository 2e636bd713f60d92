"""The mathematics in reference/README.md keeps step with the code: names, audit rows, and the lines of Algorithm 1."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
from properties import below

import minifit
from minifit import fitnets, losses, optimizers, problems
from minifit.composites import Composite
from minifit.layers import Layer
from minifit.regressors import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "reference" / "README.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", PAGE)
NAMES = sorted({name for name in QUOTED if re.fullmatch(r"(minifit|reference)(\.\w+)+", name)})
AUDITED = [part.split("\n\n")[0] for part in PAGE.split("**audit**")[1:]]
ROWS = [row for part in AUDITED for row in re.findall(r"`([^`]+)`", part) if "/" not in row]


def named(dotted):
    """What a dotted name stands for; AttributeError or ImportError for a name of nothing."""
    module, *rest = dotted.split(".")
    found = import_module(module)
    for part in rest:
        try:
            found = getattr(found, part)
        except AttributeError:
            found = import_module(f"{found.__name__}.{part}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_name_on_the_page_is_in_the_code(name):
    assert named(name) is not None


def test_every_file_on_the_page_is_there():
    files = [name for name in QUOTED if re.fullmatch(r"[\w/]+\.py", name) and "/" in name]
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_every_audit_row_on_the_page_is_a_row_or_the_beginning_of_one():
    rows = [case.name for case in problems.cases()]
    assert len(ROWS) > 30
    assert [name for name in ROWS if not any(row.startswith(name) for row in rows)] == []


def test_every_row_of_the_audit_is_on_the_page():
    # A method that is not the paper's may have its page elsewhere.
    of_the_paper = tuple(f"method {method.name}" for method in fitnets.TABLE_4)
    rows = [case.name for case in problems.cases()]
    rows = [row for row in rows if not row.startswith("method ") or row.startswith(of_the_paper)]
    assert [row for row in rows if not row.startswith(tuple(ROWS))] == []


def test_every_layer_loss_update_and_regressor_is_on_the_page():
    layers = [kind for kind in below(Layer) if kind.__module__ in ("minifit.layers", "minifit.composites")]
    wanted = [f"{kind.__module__}.{kind.__name__}" for kind in layers if kind is not Composite]
    for module in (losses, optimizers):
        for name, member in inspect.getmembers(module, lambda m: inspect.isfunction(m) or inspect.isclass(m)):
            own = member.__module__ == module.__name__ and not name.startswith("_") and "__mutmut" not in name
            wanted += [f"{module.__name__}.{name}"] if own and name != "Schedule" else []
    assert {"minifit.layers.Conv2d", "minifit.losses.hint_loss", "minifit.optimizers.RMSProp"} <= {*wanted}
    assert [name for name in wanted if name not in NAMES] == []
    assert [kind for kind in KINDS if f"regressor {kind}" not in ROWS] == []


def test_the_lines_of_algorithm_1_are_those_of_the_code():
    source = " ".join(inspect.getsource(fitnets.fitnet).split())
    table = PAGE.partition("### Algorithm 1")[2].partition("###")[0]
    lines = dict(re.findall(r"^\| (\d) \|.*\| `([^`]+)` \|$", table, re.M))
    assert sorted(lines) == ["1", "2", "3", "4", "6"]  # line 5 has happened by sharing layers
    assert [code for code in lines.values() if code not in source] == []
    assert all(f"line {number}" in source for number in "123456")


def test_every_heading_that_the_page_links_to_is_there():
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", PAGE) if link not in headings] == []


def test_the_page_is_part_of_the_package_that_it_describes():
    assert Path(minifit.__file__).parents[1] == ROOT
