"""Images in files: rows as an array would give them, copies, and readers that cannot be led astray."""

import os
import resource
import time

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifit import UserError, files
from minifit.data import stored
from minifit.data.stored import Rows, Scratch, join, part


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """(an array, the same as Rows of a file)"""
    array = np.random.default_rng(0).integers(0, 256, (23, 3, 2, 4), np.uint8)
    path = tmp_path_factory.mktemp("rows") / "bytes"
    path.write_bytes(b"before" + array.tobytes() + b"after")
    return array, Rows(path, 6, array.shape)


index = st.one_of(
    st.lists(st.integers(-23, 22), max_size=30).map(lambda i: np.array(i, np.int64)),
    st.slices(23),
    st.lists(st.booleans(), min_size=23, max_size=23).map(np.array),
    st.integers(-23, 22),
)


@given(index=index)
def test_rows_are_those_of_the_array(rows, index):
    array, there = rows
    np.testing.assert_array_equal(there[index], array[index])
    assert there[index].dtype == np.uint8 and there[index].flags.c_contiguous


@given(first=st.slices(23), second=st.data())
def test_parts_of_parts_are_not_read_until_they_are_asked_for(rows, first, second):
    array, there = rows
    of = second.draw(st.slices(len(array[first]))) if len(array[first]) else slice(None)
    lazy = part(part(there, first), of)
    assert isinstance(lazy, Rows) and lazy.shape == array[first][of].shape and lazy.ndim == 4
    np.testing.assert_array_equal(np.asarray(lazy), array[first][of])


def test_parts_join_unread_where_they_are_of_one_file_and_as_arrays_otherwise(rows):
    array, there = rows
    both = join(part(there, slice(5, 9)), part(there, slice(2)))
    assert isinstance(both, Rows)
    np.testing.assert_array_equal(both[:], np.concatenate([array[5:9], array[:2]]))
    np.testing.assert_array_equal(join(there, array), np.concatenate([array, array]))


def test_rows_have_the_fingerprint_of_the_array(rows, monkeypatch):
    array, there = rows
    whole = files.digest([array])
    monkeypatch.setattr(files, "SLICE", 50)
    assert files.digest([there]) == files.digest([array]) == whole


def test_processes_that_read_together_do_not_disturb_each_other(rows):
    array, there = rows
    pid = os.fork()
    for _ in range(300):
        wrong = not (there[3:20] == array[3:20]).all()
    if not pid:
        os._exit(wrong)
    assert os.waitpid(pid, 0)[1] == 0 and not wrong


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
def test_what_processes_write_to_a_scratch_file_all_of_them_read_and_no_name_is_left(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "SLICE", 50)
    array = np.random.default_rng(0).integers(0, 256, (23, 3, 2, 4)).astype(dtype)
    there = Scratch(tmp_path, array.shape, dtype)
    assert not any(tmp_path.iterdir()) and there.dtype == array.dtype and there.shape == array.shape
    assert os.readlink(f"/proc/self/fd/{there.file.fileno()}").startswith(str(tmp_path))  # on this disk all the same
    pid = os.fork()
    if not pid:
        there[11:] = array[11:]
        os._exit(0)
    there[0:11] = array[:11].astype("f8")
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(there[:], array)
    np.testing.assert_array_equal(there[[3, 1, -1]], array[[3, 1, -1]])
    np.testing.assert_array_equal(there.part(slice(5, 9))[::-1], array[5:9][::-1])


def test_a_disk_without_room_for_a_scratch_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"4,611,686,018,427,387,904 bytes do not fit on its disk") as caught:
        Scratch(tmp_path, (2, 2**59), "f4")
    assert str(tmp_path) in str(caught.value) and not any(tmp_path.iterdir())


def test_a_file_that_shrinks_while_it_is_read_is_one_line(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(40))
    there = Rows(path, 0, (10, 2, 2, 1))
    os.truncate(path, 21)
    np.testing.assert_array_equal(there[:5], 0)
    with pytest.raises(UserError, match="bytes: it was cut off while it was read"):
        there[4:6]


def consumes(place, what):
    if what == "memory":
        return len(bytearray(2**34))
    if what == "time":
        while True:
            pass
    if what == "crash":
        os.abort()
    if what == "fault":
        raise IndexError("list\nindex")
    return what


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("memory", "it: damaged: reading it would take more than 1,073,741,824 bytes of memory"),
        ("time", "it: damaged: what reads it was ended"),
        ("crash", "it: damaged: what reads it was ended"),
        ("fault", "it: damaged: IndexError: list index"),
    ],
)
def test_whatever_a_reader_is_led_to_is_one_line(what, line, monkeypatch):
    monkeypatch.setattr(stored, "SECONDS", 1)
    began = time.perf_counter()
    with pytest.raises(UserError) as caught:
        stored.guarded(consumes, "it", what)
    assert str(caught.value) == line and time.perf_counter() - began < 10
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY, "only the child is limited"


def test_what_a_reader_finds_comes_back():
    assert stored.guarded(consumes, "it", (1, "two")) == (1, "two")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "minifit" / "copies"


def write(path, value):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=np.full((4, 2, 2, 1), value, np.uint8), compression="gzip")


def test_a_copy_is_made_once_and_again_when_its_source_changes(tmp_path, cache):
    path, made = tmp_path / "a.h5", []

    def copied():
        source, found = stored.in_one_piece(path, stored.hdf5(path, ("images", "labels")))
        made.append(source)
        assert source.parent == cache and [*found] == ["images"]
        return int(Rows(source, found["images"].offset, found["images"].shape)[0].max())

    write(path, 1)
    assert (copied(), copied()) == (1, 1) and len({*made}) == 1
    os.truncate(made[0], 3000)  # a full disk, or a copying of caches that was interrupted
    assert copied() == 1 and len({*made}) == 1
    write(path, 2)
    os.utime(path, ns=(1, 1))
    assert copied() == 2 and len({*made}) == 2
    assert not [p for p in cache.iterdir() if p.suffix == ".tmp"]


def test_a_copy_that_does_not_fit_or_cannot_be_written_is_one_line(tmp_path, cache, monkeypatch):
    path = tmp_path / "a.h5"
    write(path, 1)
    found = stored.hdf5(path, ("images",))
    free = os.statvfs(tmp_path)
    monkeypatch.setattr(stored.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match=r"a copy of 16 bytes does not fit on its disk"):
        stored.in_one_piece(path, found)
    assert free and not [p for p in cache.iterdir() if p.suffix in (".h5", ".tmp")]
    monkeypatch.setattr("pooch.os_cache", lambda project: path)
    with pytest.raises(UserError, match="the cache cannot be written"):
        stored.in_one_piece(path, found)


@settings(max_examples=25, deadline=None)
@given(change=st.data())
def test_damaged_hdf5_is_read_or_is_one_line(change, tmp_path_factory):
    """Bytes changed anywhere, or a file cut anywhere: a name and a shape that fit the file, or one line."""
    path = tmp_path_factory.mktemp("fuzz") / "a.h5"
    write(path, 1)
    content = bytearray(path.read_bytes())
    for _ in range(change.draw(st.integers(0, 6))):
        content[change.draw(st.integers(0, len(content) - 1))] = change.draw(st.integers(0, 255))
    path.write_bytes(content[: change.draw(st.integers(0, len(content)))] if change.draw(st.booleans()) else content)
    try:
        found = stored.hdf5(path, ("images",))
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert {*found} <= {"images"}


def test_a_file_of_any_size_may_be_read():
    """The published SVHN has 2.2 GB, and may inflate to a hundred times as many."""
    assert stored.guarded(abs, -3, size=10**15) == 3
