"""The front page keeps its word: its code is the code, its numbers are in the results, its links lead somewhere."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest

import minifit
from minifit import data, files, fitnets, model, networks
from minifit.data.preprocessing import Unit
from minifit.lab import report

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for page in (
        "README.md",
        "CONTRIBUTING.md",
        "MPI.md",
        "results/README.md",
        "results/speed.md",
        "results/mnist/README.md",
        "results/weights/README.md",
        "benchmarks/README.md",
        "reference/README.md",
        "tests/mutants.md",
    )
    if (ROOT / page).exists()
]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Numbers that are no results, and what they are.
NAMES = {
    "1": "a stage, a line, an equation, one seed, a layer of one pixel, one hour",
    "2": "a stage, an equation",
    "4": "Table 4",
    "0": "a seed, a lower limit of pixels",
    "28": "pixels of a digit",
    "3.11": "the oldest Python",
    "2015": "the year of the paper",
    "1e-8": "the tolerance of differences: minifit/gradcheck.py",
    "1e-13": "the tolerance of the complex step: minifit/gradcheck.py",
    ".005": "the range of the paper's start",
}


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", page, re.M | re.S)


def anchor(heading):
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def numbers(text):
    return re.findall(r"(?<![\w.-])-?(?:\d[\d,]*(?:\.\d+)?(?:e-?\d+)?|\.\d+)(?![\w])", text)


def figures():
    """Every number in results/ and benchmarks/, as their pages and records write it, and rounded as tables do."""
    found = set()
    for page in (*ROOT.glob("results/**/*.md"), ROOT / "benchmarks" / "README.md"):
        found |= {*numbers(page.read_text(encoding="utf-8"))}
    for record in ROOT.glob("results/**/summary.json"):
        for stage in json.loads(record.read_text(encoding="utf-8"))["stages"].values():
            for value in stage.values():
                if isinstance(value, int | float):
                    found |= {f"{value:,}", f"{value:.2f}", f"{value:.1f}"}
    return found


def test_algorithm_1_on_the_front_page_is_the_code():
    assert inspect.getsource(fitnets.fitnet) in blocks(README, "python")


def test_every_number_of_the_front_page_is_in_the_results():
    prose = re.sub(r"^```(\w*)\n(.*?)^```$", lambda m: m[2] if m[1] == "text" else " ", README, flags=re.M | re.S)
    said = numbers(re.sub(r"`[^`\n]+`|<[^>]+>|\]\([^)]+\)", " ", prose))
    assert len(said) > 40
    known = figures() | {*NAMES}
    assert [number for number in said if number.lstrip("-") not in known] == []


def test_a_number_that_is_nowhere_is_caught():
    assert numbers("0.43 of 360,816 and U(-.005, .005), 1e-8, FitNet1, 29,944.") == [
        "0.43",
        "360,816",
        "-.005",
        ".005",
        "1e-8",
        "29,944",
    ]
    assert "0.4321" not in figures()


def test_the_sample_of_output_is_what_the_recorded_run_prints():
    [sample] = blocks(README, "text")
    record = json.loads((ROOT / "results/runs/digits/seed0/summary.json").read_text())
    record["stages"] = {key: record["stages"][key] for key in ("teacher", "backprop", "kd", "hint", "fitnet")}
    assert report.results_table(record).startswith(sample.rstrip())


def test_the_speed_ups_of_the_page_are_those_that_were_printed():
    record = (ROOT / "results" / "speed.txt").read_text(encoding="utf-8")
    printed = [" ".join(line.split()) for line in record.splitlines()]
    page = (ROOT / "results" / "speed.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:minifit|onnxruntime|PyTorch) .*) \|$", page, re.M)
    assert len(rows) == 12 and {row.replace(" | ", " ") for row in rows} <= {*printed}


def test_the_commands_are_those_that_everything_relies_on():
    lines = README.splitlines()
    start = "python3 -m venv .venv && .venv/bin/pip install -q -e "
    assert f"{start}. && .venv/bin/python run.py digits" in lines
    assert f"{start}'.[test]' && .venv/bin/python -m pytest -q" in lines
    assert len([line for line in lines if re.match("python3 -m venv .*pytest", line)]) == 1


def test_a_trained_student_is_used_as_the_front_page_says(tmp_path, monkeypatch):
    folder = tmp_path / "results" / "weights"
    folder.mkdir(parents=True)
    student = networks.build(networks.MNIST_FITNET)
    networks.initialise(student, np.random.default_rng(0))
    list(student.params.values())[-1][7] = 1e6  # the bias of a class
    about = model.describe(student, "MNIST FitNet", (28, 28, 1), Unit())
    files.save(folder / "mnist-fitnet.h5", {"network": about}, best=dict(student.params))
    [code] = re.findall(r"`(minifit\.load\([^`]+)`", README)
    monkeypatch.chdir(tmp_path)
    probabilities = eval(code, {"minifit": minifit, "images": np.zeros((2, 28, 28, 1), np.uint8)})
    assert probabilities.argmax(axis=1).tolist() == [7, 7] and probabilities.shape == (2, 10)


def test_a_data_set_is_made_as_the_front_page_says(tmp_path, monkeypatch):
    [code] = [block for block in blocks(README, "python") if "my.npz" in block]
    assert len(code.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    loaded = data.load("own", file="my.npz")
    assert loaded.images.shape == (480, 16, 16, 3) and np.bincount(loaded.test_labels).tolist() == [40, 40, 40]


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_somewhere(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", " ", page, flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'src="([^"]+)"', prose)
    broken = []
    for link in links:
        path, _, part = link.partition("#")
        if re.match("https?:", link):
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists():
            broken.append(link)
        elif part:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            broken += [link] * (part not in map(anchor, headings))
    assert broken == []


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 150
