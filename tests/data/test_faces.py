"""Faces from a file of the user's: which images are for testing, groups on one side, and one line for what is wrong."""

from contextlib import suppress

import h5py
import numpy as np
import pytest
from changes import changed
from hypothesis import given, settings
from hypothesis import strategies as st

from minifit import UserError, data
from minifit.data import faces


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("pooch.os_cache", lambda project: folder / project)
    return folder


def some(count=40, channels=1, seed=0):
    """Images that all differ, and labels in turn: 0, 1, 0, 1 ..."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, channels), np.uint8)
    return {"images": images, "labels": np.arange(count) % 2}


def written(path, packed=False, **fields):
    """The path of an HDF5 file with these fields; one that is None is left out."""
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            if value is not None:
                file.create_dataset(name, data=value, compression="gzip" if packed else None)
    return path


def sides(loaded, images):
    """(the rows of the file that are for training, those for testing), each image being found by its pixels."""
    place = {image.tobytes(): i for i, image in enumerate(images)}
    return tuple([place[x.tobytes()] for x in part] for part in (loaded.images, loaded.test_images))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_channels_and_their_labels_are_those_of_the_file(channels, packed, tmp_path):
    fields, split = some(channels=channels), np.arange(40) % 4 // 3
    fields["labels"] = (np.arange(40) % 3 == 0).astype(np.uint8)
    path = written(tmp_path / "a.h5", packed, **fields, split=split.astype(np.uint8))
    loaded = data.load("faces", file=path)
    assert loaded.name == "faces (stand-in for AFLW)"
    assert [part.dtype for part in faces.load(path)[1:5]] == [np.uint8, np.int64, np.uint8, np.int64]
    for images, labels, rows in (
        (loaded.images, loaded.labels, split == 0),
        (loaded.test_images, loaded.test_labels, split == 1),
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int64 and images.shape[1:] == (16, 16, channels)
        np.testing.assert_array_equal(images, fields["images"][rows])
        np.testing.assert_array_equal(labels, fields["labels"][rows])


def test_with_a_split_images_of_1_are_for_testing_and_keep_their_order(tmp_path):
    fields, split = some(10), [0, 1, 1, 0, 0, 1, 0, 1, 0, 0]
    loaded = data.load("faces", file=written(tmp_path / "a.h5", **fields, split=split))
    assert sides(loaded, fields["images"]) == ([0, 3, 4, 6, 8, 9], [1, 2, 5, 7])
    assert loaded.groups.tolist() == [0, 3, 4, 6, 8, 9] and loaded.test_groups.tolist() == [1, 2, 5, 7]


def test_images_of_a_group_become_neighbours_and_groups_keep_their_order(tmp_path):
    """Group 5 comes first in the file, then 3, 9 and -2; the split parts them as it says."""
    fields = some(12)
    group, split = [5, 3, 5, 9, 3, 9, 5, -2, 3, -2, 9, -2], [0, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1]
    loaded = data.load("faces", file=written(tmp_path / "a.h5", **fields, split=split, group=group))
    assert sides(loaded, fields["images"]) == ([0, 2, 6, 3, 5, 10], [1, 4, 8, 7, 9, 11])
    assert loaded.groups.tolist() == [5, 5, 5, 9, 9, 9] and loaded.test_groups.tolist() == [3, 3, 3, -2, -2, -2]
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1, 0] and loaded.test_labels.tolist() == [1, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("groups", "tests"), [(2, 1), (9, 1), (19, 1), (20, 2), (29, 2), (40, 4), (105, 10)])
def test_without_a_split_a_tenth_of_the_groups_is_for_testing_and_at_least_one(groups, tests, tmp_path):
    """Each group has a face and another image, and its two images lie far apart in the file."""
    fields, group = some(2 * groups), np.tile(100 + np.arange(groups), 2)
    fields["labels"] = np.repeat([0, 1], groups)
    loaded = data.load("faces", file=written(tmp_path / "a.h5", **fields, group=group))
    assert len(loaded.test_images) == 2 * tests and len(loaded.images) == 2 * (groups - tests)
    drawn = np.random.default_rng(0).permutation(np.unique(group))[:tests]
    assert {*loaded.test_groups.tolist()} == {*drawn.tolist()}
    train, test = sides(loaded, fields["images"])
    assert group[train].tolist() == loaded.groups.tolist() and group[test].tolist() == loaded.test_groups.tolist()


def test_without_groups_each_image_is_its_own_and_a_tenth_is_for_testing(tmp_path):
    fields = some(205)
    loaded = data.load("faces", file=written(tmp_path / "a.h5", **fields))
    train, test = sides(loaded, fields["images"])
    assert test == sorted(np.random.default_rng(0).permutation(205)[:20].tolist())
    assert train == [i for i in range(205) if i not in test]
    assert loaded.groups.tolist() == train and loaded.test_groups.tolist() == test
    assert loaded.test_labels.tolist() == fields["labels"][test].tolist()


def test_the_groups_for_testing_do_not_depend_on_the_order_of_the_images(tmp_path):
    fields, group = some(80), np.repeat(np.arange(40), 2)
    order = np.random.default_rng(3).permutation(80)
    one = data.load("faces", file=written(tmp_path / "a.h5", **fields, group=group))
    shuffled = {name: value[order] for name, value in (fields | {"group": group}).items()}
    two = data.load("faces", file=written(tmp_path / "b.h5", **shuffled))
    assert {*one.test_groups} == {*two.test_groups} and len({*one.test_groups}) == 4
    assert {*sides(one, fields["images"])[1]} == {*sides(two, fields["images"])[1]}


@settings(max_examples=10)
@given(draw=st.data())
def test_no_group_is_ever_on_both_sides_and_no_image_is_lost(draw, tmp_path_factory):
    """Groups of 2 to 5 images, each with a face and another, mixed in the file; sometimes with a split of groups."""
    sizes = draw.draw(st.dictionaries(st.integers(-3, 300), st.integers(2, 5), min_size=2, max_size=25))
    order = np.array(draw.draw(st.permutations(range(sum(sizes.values())))))
    group = np.repeat([*sizes], [*sizes.values()])[order]
    fields = some(len(group)) | {"labels": np.concatenate([np.arange(size) % 2 for size in sizes.values()])[order]}
    drawn = draw.draw(st.none() | st.sets(st.sampled_from([*sizes]), min_size=1, max_size=len(sizes) - 1))
    split = None if drawn is None else np.isin(group, [*drawn]).astype(np.int64)
    path = written(tmp_path_factory.mktemp("faces") / "a.h5", **fields, group=group, split=split)
    loaded = data.load("faces", file=path)
    train, test = sides(loaded, fields["images"])
    assert sorted([*train, *test]) == list(range(len(group)))
    assert not {*loaded.groups.tolist()} & {*loaded.test_groups.tolist()}
    assert {*loaded.test_groups.tolist()} == drawn if drawn else len({*loaded.test_groups}) == max(1, len(sizes) // 10)
    for part, labels, groups in (
        (train, loaded.labels, loaded.groups),
        (test, loaded.test_labels, loaded.test_groups),
    ):
        assert labels.tolist() == fields["labels"][part].tolist() and groups.tolist() == group[part].tolist()
        assert (np.diff(groups) != 0).sum() + 1 == len(np.unique(groups)), "a group's images are neighbours"


def test_a_validation_part_that_cuts_a_group_is_one_line(tmp_path):
    group, split = np.repeat(np.arange(10), 4), np.repeat([0, 1], [32, 8])
    loaded = data.load("faces", file=written(tmp_path / "a.h5", **some(), group=group, split=split))
    assert [len(labels) for _, labels in loaded.parts(28, 4, None).values()] == [28, 4, 8]
    with pytest.raises(UserError, match="with --train 29 and --validation 3, group 7 lies in both") as caught:
        loaded.parts(29, 3, None)
    assert "\n" not in str(caught.value)


FIELDS = some()
IMAGES, LABELS = FIELDS["images"], FIELDS["labels"]
HALF = np.arange(40) // 2 % 2  # a split with both classes on both sides
WRONG = {
    "no images": ({"images": None}, "has no images; wanted images uint8"),
    "no labels": ({"labels": None}, "has no labels; wanted"),
    "grey without channels": ({"images": IMAGES[..., 0]}, r"images: found uint8 \(40, 16, 16\); wanted uint8"),
    "floats": ({"images": IMAGES / 255}, r"images: found float64 \(40, 16, 16, 1\); wanted uint8"),
    "no image": ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"images: found uint8 \(0, 16, 16, 1\)"),
    "lower": (
        {"images": IMAGES[:, 1:]},
        r"images: found uint8 \(40, 15, 16, 1\); wanted uint8 \(N, 16, 16, C\)",
    ),
    "narrower": (
        {"images": IMAGES[:, :, 1:]},
        r"images: found uint8 \(40, 16, 15, 1\); wanted uint8 \(N, 16, 16, C\)",
    ),
    "fewer labels": ({"labels": LABELS[1:]}, r"labels: found int64 \(39,\); wanted whole numbers \(40,\)"),
    "half labels": ({"labels": LABELS / 2}, r"labels: found float64 \(40,\); wanted whole numbers \(40,\)"),
    "negative labels": ({"labels": LABELS - 1}, "labels: found -1; wanted 0 or 1"),
    "huge labels": ({"labels": LABELS * 2**40}, "labels: found 1099511627776; wanted 0 or 1"),
    "labels of three": ({"labels": LABELS + 1}, "labels: found 2; wanted 0 or 1"),
    "fewer in the split": ({"split": HALF[1:]}, r"split: found int64 \(39,\); wanted whole numbers \(40,\)"),
    "a split of floats": ({"split": HALF / 1.0}, r"split: found float64 \(40,\); wanted whole numbers \(40,\)"),
    "a split in a column": ({"split": HALF[:, None]}, r"split: found int64 \(40, 1\); wanted whole numbers \(40,\)"),
    "a split in three": ({"split": HALF * 2}, "split: found 2; wanted 0 or 1"),
    "a split below 0": ({"split": -HALF}, "split: found -1; wanted 0 or 1"),
    "fewer in groups": ({"group": LABELS[1:]}, r"group: found int64 \(39,\); wanted whole numbers \(40,\)"),
    "groups by name": ({"group": [b"a"] * 40}, r"group: found \S+ \(40,\); wanted whole numbers \(40,\)"),
    "one number for all groups": ({"group": 7}, r"group: found int64 \(\); wanted whole numbers \(40,\)"),
    "a group on both sides": (
        {"split": HALF, "group": np.repeat([4, 6, 8, 9], 10)},
        "split: group 4 is found on both sides; wanted each group on one",
    ),
    "no face to train on": ({"split": HALF, "labels": HALF}, "labels: found one class among the training images"),
    "all for training": ({"split": HALF * 0}, "split: found no test images; wanted faces and others on both sides"),
    "all for testing": ({"split": HALF * 0 + 1}, "split: found no training images; wanted faces"),
    "a single group": (
        {"group": HALF * 0},
        "group: found 1 of them and no split, so that a tenth, drawn for testing, leaves no training images; wanted",
    ),
    "four images": (
        {"images": IMAGES[:4], "labels": LABELS[:4]},
        "group: found 4 of them and no split, so that a tenth, drawn for testing, leaves one class among the test",
    ),
    "a test part": (
        {"test_images": np.zeros((4, 16, 16, 1), np.uint8), "test_labels": np.arange(4) % 2},
        "test_images: found a test part of its own; wanted split, 1 for a test image",
    ),
    "a single test image": ({"split": np.eye(40, dtype=int)[3]}, "labels: found one class among the test images"),
}


def refused(path, line):
    with pytest.raises(UserError, match=line) as caught:
        data.load("faces", file=path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line_with_file_and_field(name, tmp_path):
    fields, line = WRONG[name]
    refused(written(tmp_path / "faces.h5", **FIELDS | fields), rf"faces\.h5: {line}")


def test_a_foreign_or_missing_file_is_one_line(tmp_path):
    refused(tmp_path / "missing.h5", r"--data .*missing\.h5: no such file; wanted an HDF5 file with images uint8")
    refused(tmp_path, "--data .*: not a file; wanted an HDF5 file with images uint8")
    (tmp_path / "a.h5").write_text("hello, world")
    refused(tmp_path / "a.h5", r"a\.h5: damaged, or no HDF5 file")
    with pytest.raises(UserError, match=r"faces: wanted --data FILE, an HDF5 file with images uint8 \(N, 16, 16, C\)"):
        data.load("faces")
    with pytest.raises(UserError, match=r"--data-dir .*: faces is read from --data FILE"):
        data.load("faces", tmp_path, file=tmp_path / "a.h5")


def read_whole(path):
    """Reads a file, or is refused in one line; what is read has the form of every set of faces."""
    try:
        loaded = data.load("faces", file=path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return
    for images, labels, groups in (
        (loaded.images, loaded.labels, loaded.groups),
        (loaded.test_images, loaded.test_labels, loaded.test_groups),
    ):
        assert images.shape[1:3] == (16, 16) and len(images) == len(labels) == len(groups)
        assert {*labels.tolist()} == {0, 1}
    assert not len(np.intersect1d(loaded.groups, loaded.test_groups))


@pytest.mark.parametrize("packed", [False, True])
@settings(max_examples=10)
@given(draw=st.data())
def test_damaged_files_are_read_or_are_one_line(packed, draw, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "a.h5"
    written(path, packed, images=IMAGES[:8], labels=LABELS[:8], split=HALF[:8], group=np.arange(8) // 2)
    path.write_bytes(changed(draw.draw, path.read_bytes()))
    read_whole(path)


@settings(max_examples=20)
@given(draw=st.data())
def test_hdf5_of_any_structure_is_read_or_is_one_line(draw, tmp_path_factory):
    """A file that is read, in which fields are replaced by some of any shape, type and values, or left out."""
    path, fields = tmp_path_factory.mktemp("fuzz") / "a.h5", FIELDS | {"split": HALF, "group": np.arange(40)}
    shapes = st.one_of(st.lists(st.integers(0, 4), max_size=4), st.just([40]), st.just([40, 16, 16, 2]))
    types = st.sampled_from(["u1", "i1", "u8", "i8", ">i4", "f4", "S3", "?", "c8"])
    for name in draw.draw(st.sets(st.sampled_from(faces.FIELDS), min_size=1, max_size=2)):
        least = draw.draw(st.integers(-1, 1))
        with suppress(OverflowError):  # a type that has no -1
            value = np.full(draw.draw(shapes), least, draw.draw(types))
            fields[name] = draw.draw(st.sampled_from([value, None]))
    read_whole(written(path, **fields))
