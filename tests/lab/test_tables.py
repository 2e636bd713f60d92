"""The paper's tables: every row has the published figure, and ours or a command that makes it."""

import shlex

from test_compare import member, stage

from minifit import baselines, experiments
from minifit.lab import compare, tables
from minifit.lab.records import write_record
from reference import paper

ROWS = [row for _, rows in paper.TABLES.values() for row in rows]
TABLE_4 = next(row for row in ROWS if (row.experiment, row.method) == ("mnist", "fitnet"))


def test_a_row_without_results_names_a_command_that_exists(tmp_path):
    names = {method.name for method in baselines.METHODS}
    for row in ROWS:
        [[_, published, *ours, command]] = tables.lines(row, True, tmp_path)
        assert published == (f"{row.published:g}" if row.published else "fails") and ours == [None] * 3
        assert shlex.split(command)[:4] == ["python", "run.py", "compare", row.experiment]
        assert row.experiment in experiments.EXPERIMENTS and row.method in names
        assert shlex.split(command)[4:] == ([] if row.method in paper.TABLE_4 else ["--methods", row.method])


def test_a_row_has_the_mean_and_interval_of_each_preset_and_arm_without_seeds_of_others(tmp_path):
    def write(part, runs, changed=None):
        (tmp_path / "mnist" / part).mkdir(parents=True)
        write_record(
            tmp_path / "mnist" / part / "results.json",
            compare.gather(runs, "command", changed) | {"experiment": "mnist"},
        )

    def of(seed, error, arm="", missing=(), **settings):
        return member(seed, arm, missing, settings=settings, fitnet=stage("fitnet", test_error=error))

    write("paper", [of(0, 0.5, preset="paper")], {"tau": "1"})
    write("default", [of(0, 1.0), of(1, 2.0), of(2, 9.0, missing=["fitnet"])])
    write("arms", [of(0, 3.0, preset="short"), of(0, 7.0, "tau=1", tau=1.0, preset="short")])
    write("studies", [of(0, 8.0)])
    assert [line[1:] for line in tables.lines(TABLE_4, False, tmp_path)] == [
        ["0.51", "0.50", None, "0", "paper (changed), digits"],
        ["0.51", "1.50", "-4.85 to 7.85", "0 and 1", "default, digits"],
        ["0.51", "3.00", None, "0", "short, digits"],
        ["0.51", "7.00", None, "0", "short, tau=1, digits"],
    ]
    assert tables.lines(TABLE_4, True, tmp_path)[1][2] == "98.50"  # as accuracy


def test_all_tables_are_printed_from_the_committed_records(capsys):
    tables.tables("results", print)
    said = capsys.readouterr().out
    for title in paper.TABLES:
        assert f"{title}\n" in said
    faces = said[said.index("Section 3.4") :].partition("\n\n\n")[0].splitlines()
    ours = [line for line in faces if "changed" in line]
    assert len(ours) == 5 and all(line.endswith("paper (changed), faces (stand-in for AFLW)") for line in ours)
    assert "Table 6" in said and "Section 2.4" in said
