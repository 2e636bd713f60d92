"""A run directory to which anything is done: every command ends in one line, which leads back to the same bytes."""

import re
import shutil
import tempfile
from pathlib import Path

import faults
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from small import contents

STAGES = ("teacher", "backprop", "kd", "hint", "fitnet")
NAMES = ("config.json", "summary.json", "metrics.jsonl", *(f"{stage}.h5" for stage in STAGES))
names = st.sampled_from(NAMES)


def machine(base):
    """Returns the state machine of Hypothesis for the runs of `faults.build` in this folder."""

    class Runs(RuleBasedStateMachine):
        """A finished run, to which things happen."""

        def __init__(self):
            super().__init__()
            self.place = tempfile.TemporaryDirectory()
            self.folder = Path(self.place.name) / "copy"
            shutil.copytree(base, self.folder)
            self.run = self.folder / faults.RUN

        def command(self, *words):
            case = faults.Case("", "", lambda folder: None, words, (0, 2))
            with faults.small(), faults.contextlib.chdir(self.folder):
                status, said = faults.answer(words)
            assert faults.verdict(case, status, said) == "", (words, said)
            return status, said

        @rule(stage=st.sampled_from(STAGES))
        def train(self, stage):
            self.command(*faults.GO_ON, "--stage", stage)

        @rule()
        def compare(self):
            self.command(*faults.COMPARE)

        @rule(name=names)
        def remove(self, name):
            (self.run / name).unlink(missing_ok=True)

        @rule(name=names, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
        def flip(self, name, place, bit):
            if (self.run / name).exists() and (content := bytearray((self.run / name).read_bytes())):
                content[int(place * len(content))] ^= 1 << bit
                (self.run / name).write_bytes(content)

        @rule(name=names, share=st.floats(0, 1))
        def cut(self, name, share):
            if (self.run / name).exists():
                content = (self.run / name).read_bytes()
                (self.run / name).write_bytes(content[: int(share * len(content))])

        @rule(one=names, other=names)
        def confuse(self, one, other):
            if (self.run / one).exists():
                (self.run / other).write_bytes((self.run / one).read_bytes())

        @rule(stage=st.sampled_from(STAGES))
        def half(self, stage):
            """The file of the half-trained run takes the place of a stage's."""
            shutil.copy(base / faults.HALF / "fitnet.h5", self.run / f"{stage}.h5")

        def teardown(self):
            """Removes the file that each line names, until the run is whole again."""
            for _ in range(2 * len(NAMES)):
                status, said = self.command(*faults.GO_ON)
                if not status:
                    break
                named = [name for name in NAMES if re.search(rf"\b{re.escape(name)}", said[0]) and self.there(name)]
                for name in named or [name for name in NAMES if self.there(name)]:
                    (self.run / name).unlink()
            assert status == 0 and contents(self.run) == contents(base / faults.RUN)
            self.place.cleanup()

        def there(self, name):
            return (self.run / name).exists()

    return Runs
