"""Prints the paper's tables and its networks' counts: published figures, and ours or the command for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from minifit import baselines, experiments, networks
from minifit.lab import publish
from minifit.lab.compare import paired
from minifit.lab.report import count, networks_table, number, several, table
from reference import paper

CONFIDENCES = 0.1, 0.3, 0.5, 0.9, 0.99, 0.999  # of the teacher, in the table of the curriculum
PARTS = "paper", "default", "short", "arms"  # the parts of a results folder that can fill a row


def tables(results, say):
    """Prints Tables 1 to 6, Figure 2, and sections 2.4, 3.1 and 3.4, from the records in a results folder."""
    for title, (accuracies, rows) in paper.TABLES.items():
        body = [line for row in rows for line in lines(row, accuracies, Path(results))]
        unit = "accuracy %" if accuracies else "error %"
        header = [
            "system",
            f"paper\n{unit}",
            f"ours\n{unit}",
            "95 %\ninterval",
            "seeds",
            "settings and data, or the command",
        ]
        say(f"{title}\n\n{table(body, header)}\n")
    say(f"Table 6. The networks of Figure 2\n\n{table_6()}\n")
    say(f"Section 2.4. The curriculum\n\n{curriculum()}")


def lines(row, accuracies, results):
    """Returns one row of cells per preset and arm with results; without results, one row with the command."""
    method = next(method for method in baselines.METHODS if method.name == row.method)
    system = method.title + f" ({row.about})" * bool(row.about)
    published = "fails" if row.published is None else f"{row.published:g}"
    rows = []
    for settings, ours in figures(results / row.experiment, row.method).items():
        errors = [100 - error if accuracies else error for error in ours["test_errors"]]
        seeds = several(ours["seeds"])
        rows.append([system, published, number(float(np.mean(errors))), interval(errors), seeds, settings])
    chosen = "" if method.default else f" --methods {method.name}"
    command = f"python run.py compare {row.experiment}{chosen}"
    return rows or [[system, published, None, None, None, command]]


def figures(folder, method):
    """Returns {preset, changed settings of an arm, and data: the row of a method} from the results of an experiment."""
    parts, rows = publish.parts_of(folder), {}
    for part in (parts[name] for name in PARTS if name in parts):
        preset = part["preset"] + " (changed)" * bool(part["changed"])
        for row in part["questions"][0]["rows"]:
            if row["method"] == method and row["test_errors"]:
                rows[", ".join([preset, *filter(None, [row["arm"]]), part["data"]])] = row
    return rows


def interval(values):
    """Returns the 95 % interval of the mean; None for fewer than two values, and for equal ones."""
    mean = paired(values, np.zeros(len(values)))
    return None if mean["low"] is None else f"{mean['low']:.2f} to {mean['high']:.2f}"


def table_6():
    rows = []
    for network in (*networks.DEPTH_30M, *networks.DEPTH_107M):
        weights, multiplications = counted(networks.as_counted(network))
        guided = next(e for e in experiments.EXPERIMENTS.values() if e.student is network).presets["paper"].guided_layer
        budget = paper.COUNTS[network.name].published_multiplications
        rows.append([network.name, f"{several(guided)} from 2", f"{weights:,}", budget, count(multiplications)])
    return table(rows, ["network", "guided layer", "weights", "budget", "multiplications"])


def curriculum():
    """Returns a table: an image's gradient at a student that knows nothing, by the teacher's confidence in a class."""
    k, tau = 10, experiments.MNIST_PAPER.tau
    logits = np.log([[c, *[(1 - c) / (k - 1)] * (k - 1)] for c in CONFIDENCES])
    rows = [[f"{c:g}", f"{pull:.4f}"] for c, pull in zip(*baselines.pull(logits, tau), strict=True)]
    note = "The gradient of eq. 2's second term grows with the teacher's confidence, so sure images are learnt first."
    lam = "python run.py compare mnist --studies shows whether lambda's decay matters."
    header = ["teacher's\nconfidence", "gradient"]
    return f"{table(rows, header)}\n\n{note}\n{lam}"


def network_counts(say):
    """Prints the weights and multiplications of the paper's networks beside the published counts."""
    likely = paper.COUNTS["FitNet 3, block 1 of 64s"]
    fully_connected = (
        "Its fully connected maxout layer is built and trained with 5 pieces, as the text says. The published counts "
        "are those of 2 pieces in every maxout layer."
    )
    as_printed = [
        "With the printed first block, 32-48-64-64, neither count is the published one. 64-64-64-64 would give both: "
        f"{likely.weights:,} weights and {count(likely.multiplications)} multiplications."
    ]
    budget = ["Table 6 gives no counts; this is the budget of multiplications of its series."]
    notes = {
        networks.FITNET_3: as_printed,
        networks.FITNET_3_100: as_printed,
        networks.FITNET_4_100: ["The published count is for 10 classes; 100 classes have 45,000 weights more."],
        **dict.fromkeys((*networks.DEPTH_30M, *networks.DEPTH_107M), budget),
    }
    for network in (networks.AFLW_TEACHER, networks.AFLW_FITNET_1, networks.AFLW_FITNET_2):
        weights, multiplications = counted(replace(network, input=(16, 16, 1)))
        grey = f"For grey images it has {weights:,} weights and {count(multiplications)} multiplications."
        notes[network] = [grey]
    supervised = ["A deeply-supervised net has these weights, and heads that are discarded after training."]
    notes |= {network: supervised for network in networks.OTHERS if network.name.startswith("network in network")}
    rows = []
    for network in (*networks.NETWORKS, *networks.OTHERS):
        theirs, as_built = network in networks.OTHERS, counted(network)
        as_counted = as_built if theirs else counted(networks.as_counted(network))
        printed = paper.OTHER_COUNTS.get(network.name), None
        if not theirs:
            published = paper.COUNTS[network.name]
            printed = published.published_weights, published.published_multiplications
        weights, multiplications = zip(printed, as_counted, as_built, strict=True)
        row = {"network": network.name, "layers": len(network.blocks), "weights": weights}
        more = [fully_connected] * (as_counted != as_built) + notes.get(network, [])
        rows.append(row | {"multiplications": multiplications, "notes": more})
    say(networks_table(rows))


def counted(network):
    """Returns the weights and the multiplications of a network."""
    counts = networks.count(networks.build(network), np.zeros((0, *network.input), np.float32))
    return [sum(column) for column in zip(*counts, strict=True)]
