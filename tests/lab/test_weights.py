"""results/weights: every file is in the list, with the SHA-256 it has and the command that made it, and can be loaded.

The list is the table of its README: | `file` | network | test error, % | SHA-256 | `command` |.
"""

import hashlib
import re
from pathlib import Path

import numpy as np

from minifit import load
from minifit.lab.speed import from_file

FOLDER = Path(__file__).resolve().parents[2] / "results" / "weights"
ROW = re.compile(r"\| `([^`|]+)` \| [^|]+ \| [^|]+ \| `?([0-9a-f]{64})`? \| `(python run\.py [^`]+)`")
ERROR = re.compile(r"\| `([^`|]+)\.h5` \| [^|]+ \| ([\d.]+) \|")
MOST = 4_000_000  # bytes of the networks for MNIST together


def listed(text):
    """{file: (SHA-256, the command that made it)}."""
    return {name: (sha, command) for name, sha, command in ROW.findall(text)}


def test_a_row_of_the_list_is_read():
    row = f"| `fitnet.h5` | MNIST FitNet | 0.49 | `{'0a' * 32}` | `python run.py mnist --seed 0` |"
    assert listed(f"| file | network |\n| --- | --- |\n{row}\n") == {
        "fitnet.h5": ("0a" * 32, "python run.py mnist --seed 0")
    }
    assert listed(row.replace("0a", "0A")) == {}


def test_every_file_is_listed_and_has_its_checksum():
    known = listed((FOLDER / "README.md").read_text())
    there = {path.name: path for path in FOLDER.iterdir() if path.name != "README.md"}
    assert there.keys() == known.keys() and known
    for name, (sha, _) in known.items():
        assert hashlib.sha256(there[name].read_bytes()).hexdigest() == sha, name
    assert sum(path.stat().st_size for name, path in there.items() if name.startswith("mnist")) < MOST


def test_the_errors_that_speed_reads_are_those_of_the_list():
    listed = {name: float(error) for name, error in ERROR.findall((FOLDER / "README.md").read_text())}
    assert listed and listed == {path.stem: round(from_file(path).error, 2) for path in FOLDER.glob("*.h5")}


def test_a_file_is_read_without_minifit_as_the_page_says(monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert "import minifit" not in code and "from minifit" not in code
    monkeypatch.chdir(FOLDER.parents[1])
    scope = {}
    exec(code, scope)
    model = load(FOLDER / "mnist-fitnet.h5")
    assert scope["about"] == model.about and scope["arrays"].keys() == model.layers.params.keys()
    assert all(np.array_equal(scope["arrays"][name], a) for name, a in model.layers.params.items())
    assert capsys.readouterr().out.count("'kind': 'Conv2d'") == 6


def test_every_network_can_be_loaded_and_gives_probabilities():
    for path in sorted(FOLDER.glob("*.h5")):
        if not path.name.startswith("whitening"):
            model = load(path)
            images = np.random.default_rng(0).integers(0, 256, (2, *model.input), np.uint8)
            np.testing.assert_allclose(model(images).sum(axis=1), 1, atol=1e-5)
