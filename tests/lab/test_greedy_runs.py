"""Greedy methods from beginning to end: layers are handed on, and workers and interruptions change nothing."""

from dataclasses import replace

import numpy as np
import pytest
from small import CONFIG, SMALL, contents, double_best, interrupt_at, perform, refusal

from minifit import UserError, data, greedy
from minifit.lab import publish
from minifit.lab.pictures import first_layers
from minifit.lab.plan import outline
from minifit.lab.runner import set_up, stage_of

RECONSTRUCTING = [name for name in (method.name for method in greedy.LAYERWISE) if "supervised" not in name]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train=64, test=16)


@pytest.fixture
def new_run(digits, monkeypatch):
    monkeypatch.setattr(greedy, "UNITS", (12, 9, 7))

    def make(folder, *methods, workers=1, **settings):
        config = replace(CONFIG, microbatch=4, **settings)
        return set_up(folder, "digits", "default", SMALL, config, 0, digits, np, workers, False, methods=methods)

    return make


@pytest.mark.parametrize("name", [method.name for method in greedy.LAYERWISE])
def test_workers_and_interruptions_change_no_byte_and_layers_are_handed_on(name, new_run, tmp_path):
    whole, cut = (new_run(tmp_path / str(workers), name, workers=workers) for workers in (1, 2))
    made = perform(whole)
    first, second, third, last = made
    assert (second, third, last) == (f"{first}_2", f"{first}_3", name)
    for at in ((second, 1), (last, 1)):
        with pytest.raises(KeyboardInterrupt):
            perform(cut, tell=interrupt_at(*at))
    assert not any(fresh for _, fresh in list(perform(cut).values())[:-1])
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert [row["stage"] for row in outline(whole, {key: whole.plan.stages[key][1] for key in made})] == list(made)
    # Each layer starts the last stage as its own stage has left it.
    layers, x = stage_of(whole, last, start=True).network, np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    for i, key in enumerate((first, second, third), start=1):
        stage = stage_of(whole, key)
        hidden = stage.network.up(stage.sees(x))[0] if stage.reconstructs else stage.network[0](stage.sees(x))
        if stage.reconstructs and name.endswith("student"):
            hidden = layers[i - 1][2:](hidden)  # its pooling, if it has any
        np.testing.assert_array_equal(layers[:i](x), hidden)
    assert len(first_layers(whole)) == 2  # the first stage and the last see images


def test_a_layer_does_not_go_on_above_others_than_it_began_on(new_run, tmp_path):
    run = new_run(tmp_path, "greedy-autoassociator")
    with pytest.raises(KeyboardInterrupt):
        perform(run, tell=interrupt_at("autoassociator_2", 1))
    double_best(tmp_path / "autoassociator.h5")
    assert "autoassociator_2.h5: made from another teacher or start than there is now" in refusal(perform, run)


@pytest.mark.parametrize("name", RECONSTRUCTING)
def test_whitened_images_are_refused_when_training_and_not_when_a_run_is_made(name, new_run, tmp_path):
    run = new_run(tmp_path, name, preprocessing="whitened")
    assert "--preprocessing unit" in refusal(perform, run)


def test_a_comparison_takes_no_stage_of_another_network_that_a_method_brought(new_run, tmp_path, monkeypatch):
    """The settings of a run do not have such a network; the files of its stages do."""
    perform(new_run(tmp_path, "greedy-supervised"))
    assert not publish.Member(new_run(tmp_path, "greedy-supervised"), []).record()["missing"]
    monkeypatch.setattr(greedy, "UNITS", (12, 9, 8))
    with pytest.raises(UserError, match=r"supervised\.h5 holds a run with other settings: network\.blocks.* 7, now 8"):
        publish.Member(new_run(tmp_path, "greedy-supervised"), []).record()
