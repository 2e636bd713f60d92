"""Run files: what is saved comes back, whole or not at all, and what is not such a file is told in one line."""

import json
import os
import signal
import time

import h5py
import numpy as np
import pytest

from minifit import UserError, files

ARRAYS = {
    "0.w": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "0.1.2.b": np.array([np.pi, -0.0, np.inf, np.nan]),
    "seen": np.arange(5, dtype=np.uint8),
    "step": np.array(3, np.int64),
    "none": np.zeros((0, 4), np.float32),
    "group/inner": np.ones(2, bool),
}
RECORD = {"epoch": 3, "best_loss": 0.1, "name": "ä", "rng": {"state": 2**127 + 1}, "finished": False, "none": None}

READINGS = files.load, files.load_record


def refusal(path, reading=files.load):
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as caught:
        reading(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    return line


def test_what_is_saved_comes_back_with_its_types_shapes_and_bits(tmp_path):
    flat = {name: a for name, a in ARRAYS.items() if "/" not in name}
    files.save(tmp_path / "a.h5", RECORD, weights=flat, best={}, optimizer={"0.w": ARRAYS["0.w"].T})
    record, groups = files.load(tmp_path / "a.h5")
    assert record == RECORD and groups.keys() == {"weights", "best", "optimizer"}
    assert groups["best"] == {} and groups["weights"].keys() == flat.keys()
    for name, a in flat.items():
        found = groups["weights"][name]
        assert (found.dtype, found.shape, found.tobytes()) == (a.dtype, a.shape, a.tobytes())
    np.testing.assert_array_equal(groups["optimizer"]["0.w"], ARRAYS["0.w"].T)


def test_what_comes_back_is_a_copy_that_outlives_the_file(tmp_path):
    files.save(tmp_path / "a.h5", {}, weights={"0.w": np.ones(3)})
    groups = files.load(tmp_path / "a.h5")[1]
    os.remove(tmp_path / "a.h5")
    groups["weights"]["0.w"] += 1
    np.testing.assert_array_equal(groups["weights"]["0.w"], 2)


def test_the_same_content_gives_the_same_bytes_in_whatever_order_and_whenever(tmp_path):
    files.save(tmp_path / "a.h5", RECORD, weights=ARRAYS, best={})
    time.sleep(1.01)  # a time of creation, if it were stored, would have whole seconds
    backwards = dict(reversed(ARRAYS.items()))
    files.save(tmp_path / "b.h5", dict(reversed(RECORD.items())), weights=backwards, best={})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_no_file_needs_pickle(tmp_path):
    files.save(tmp_path / "a.h5", RECORD, weights=ARRAYS)
    with h5py.File(tmp_path / "a.h5") as file:
        kinds = []
        file.visititems(lambda name, item: kinds.append(item.dtype.kind) if isinstance(item, h5py.Dataset) else None)
        assert json.loads(file["record"][()].tobytes()) == RECORD
    assert len(kinds) == len(ARRAYS) + 1 and set(kinds) <= set("fiub")  # plain numbers: no objects, no opaque bytes
    content = (tmp_path / "a.h5").read_bytes()
    length = int.from_bytes(content[-72:-64], "big")  # then two checksums of 32 bytes
    assert json.loads(content[-72 - length : -72]) == RECORD


def test_the_record_is_read_without_the_arrays_whatever_became_of_them(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    files.save(path, RECORD, weights={"w": np.random.default_rng(0).random((50, 20))})
    assert files.load_record(path) == RECORD
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    refusal(path)
    monkeypatch.setattr(type(path), "read_bytes", None)  # a file of many gigabytes is not read for one word of it
    monkeypatch.setattr(files.h5py, "File", None)
    assert files.load_record(path) == RECORD


def test_a_damaged_record_is_told_by_either_reading(tmp_path):
    path = tmp_path / "a.h5"
    files.save(path, RECORD, weights={"w": np.ones(3)})
    content, of_record = path.read_bytes(), len(json.dumps(RECORD)) + 72
    for place in (
        of_record,
        of_record // 2 + 36,
        72,
        68,
        65,
        64,
        40,
        33,
    ):  # from the end: the record, its length, its sum
        damaged = bytearray(content)
        damaged[-place] ^= 1
        path.write_bytes(damaged)
        assert "remove it to train again" in refusal(path) and refusal(path, files.load_record)


def test_what_cannot_be_stored_as_numbers_is_refused_and_changes_nothing(tmp_path):
    files.save(tmp_path / "a.h5", {"epoch": 1}, weights={"w": np.ones(2)})
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(TypeError):
        files.save(tmp_path / "a.h5", {"epoch": 2}, weights={"w": np.ones(2), "z": np.array([{}, None])})
    with pytest.raises(TypeError):
        files.save(tmp_path / "a.h5", {"epoch": object()}, weights={})
    assert (tmp_path / "a.h5").read_bytes() == before and os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(step, tmp_path, monkeypatch):
    files.save(tmp_path / "a.h5", {"epoch": 1}, weights={"w": np.ones(2)})
    before = (tmp_path / "a.h5").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"a\.h5: .*No space"):
        patch.setattr(files.os, step, full)
        files.save(tmp_path / "a.h5", {"epoch": 2}, weights={"w": np.zeros(2)})
    assert (tmp_path / "a.h5").read_bytes() == before and os.listdir(tmp_path) == ["a.h5"]


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda file: (events.append(os.fstat(file).st_ino), fsync(file)))
    monkeypatch.setattr(files.os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    files.save(tmp_path / "a.h5", {}, weights={"w": np.ones(2)})
    assert events == [os.stat(tmp_path / "a.h5").st_ino, "replace", os.stat(tmp_path).st_ino]


def test_a_writer_that_is_killed_leaves_the_old_file_and_the_next_one_clears_up(tmp_path):
    path = tmp_path / "a.txt"
    files.write_atomically(path, lambda file: file.write(b"old"))

    def die(file):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            files.write_atomically(path, die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    files.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_a_truncated_file_is_told_wherever_it_ends(tmp_path):
    path = tmp_path / "teacher.h5"
    files.save(path, RECORD, weights={"w": np.random.default_rng(0).random((50, 20))})
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 71, 72, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        for reading in READINGS:
            line = refusal(path, reading)
            assert "not a whole minifit file" in line and "remove it to train again" in line


def test_a_damaged_file_is_told_wherever_the_damage_is(tmp_path):
    path, rng = tmp_path / "kd.h5", np.random.default_rng(1)
    files.save(path, {"epoch": 1}, weights={f"{i}.w": np.ones((3, 3)) for i in range(4)}, best={})
    content = path.read_bytes()
    for place in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        refusal(path)


def test_foreign_files_are_told(tmp_path):
    path = tmp_path / "hint.h5"
    path.write_text("<html>not found</html>\n" * 50)
    for reading in READINGS:
        refusal(path, reading)
    path.unlink()
    path.mkdir()
    for reading in READINGS:
        refusal(path, reading)
    path.rmdir()
    for reading in READINGS:
        refusal(path, reading)  # nothing at all
    for content in ({}, {"record": "{"}, {"record": 3}, {"record": "{}"}):
        with h5py.File(path, "w") as file:
            file.attrs.update(content)
            file["weights"] = np.ones(3)  # a data set where save makes a group
        refusal(path)


def test_restoring_copies_in_place():
    params = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(2)}
    arrays = dict(params)
    files.restore(params, {"a": np.ones((2, 3), np.float32), "b": np.full(2, 5.0)}, "x.h5")
    assert params["a"] is arrays["a"] and params["a"].dtype == np.float32 and params.keys() == {"a", "b"}
    np.testing.assert_array_equal(params["a"], 1)
    np.testing.assert_array_equal(params["b"], 5)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"a": np.ones((3, 2))}, r"\(2, 3\).*\(3, 2\)"),
        ({"a": np.ones((1, 3))}, r"\(2, 3\).*\(1, 3\)"),
        ({"a": np.ones(())}, r"\(2, 3\).*\(\)"),
        ({"A": np.ones((2, 3))}, r"\(2, 3\).*nothing"),
        ({"a": np.ones((2, 3), np.complex128)}, "float64.*complex128"),
        ({"a": np.ones((2, 3), np.float32)}, "float64.*float32"),
    ],
)
def test_restoring_refuses_what_would_not_fit_or_would_broadcast(saved, said):
    with pytest.raises(UserError, match=r"^fitnet\.h5: parameter a .*" + said):
        files.restore({"a": np.zeros((2, 3))}, saved, "fitnet.h5")


def test_restoring_refuses_an_array_that_nobody_asks_for():
    with pytest.raises(UserError, match=r"fitnet\.h5: has an array b"):
        files.restore({"a": np.zeros(2)}, {"a": np.zeros(2), "b": np.ones(2)}, "fitnet.h5")
