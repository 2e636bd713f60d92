"""Reads faces and other images of 16x16 pixels, as in section 3.4 of the paper (AFLW), from an HDF5 file of the user's.

The file has `images` uint8 (N, 16, 16, C), `labels` (N,) with 1 for a face, and may have `split` (N,) with 1 for a test
image and `group` (N,): images of one group, such as crops of one picture, stay on one side of every split. Tables call
every file a stand-in: AFLW itself is licensed, and minifit cannot tell it from other faces.
"""

from pathlib import Path

import numpy as np

from minifit import UserError
from minifit.data import own, stored

WANTED = "an HDF5 file with images uint8 (N, 16, 16, C) and labels (N,), 1 for a face; it may have split and group"
NAME = "faces (stand-in for AFLW)"
FIELDS = ("images", "labels", "split", "group")
SIZE, TESTS, SEED = 16, 10, 0  # without a split, a tenth of the groups is for testing: paper 3.4


def load(path):
    """Returns the set's name, images and labels for training, the same two for testing, and the groups of both.

    Images of a group are neighbours; groups keep the file's order.
    """
    path = Path(path)
    images, labels, split, group = _read(path)
    drawn = split is None
    if drawn:
        named = np.random.default_rng(SEED).permutation(np.unique(group))
        split = np.isin(group, named[: max(1, len(named) // TESTS)]).astype(np.int64)
    first, of_group = np.unique(group, return_index=True, return_inverse=True)[1:]
    order = np.argsort(first[of_group], kind="stable")
    train, test = order[split[order] == 0], order[split[order] == 1]
    both = np.intersect1d(group[train], group[test])
    if len(both):
        raise UserError(f"{path}: split: group {both[0]} is found on both sides; wanted each group on one")
    for part, which in (("training", train), ("test", test)):
        if len(np.unique(labels[which])) < 2:
            shortage = f"{'one class among the' if len(which) else 'no'} {part} images"
            if drawn:
                few = f"found {len(named)} of them and no split, so that a tenth, drawn for testing, leaves {shortage}"
                raise UserError(f"{path}: group: {few}; wanted more groups (else each image is one), or split")
            field = "labels" if len(which) else "split"
            raise UserError(f"{path}: {field}: found {shortage}; wanted faces and others on both sides")
    groups = group[train], group[test]
    return NAME, images.part(train), labels[train], images.part(test), labels[test], groups


def _read(path):
    """Reads images, labels, split and group of a file. split may be None; without groups each image is its own."""
    if not path.is_file():
        raise UserError(f"--data {path}: {'not a file' if path.exists() else 'no such file'}; wanted {WANTED}")
    fields = stored.hdf5(path, FIELDS + own.FIELDS[2:])
    for name in ("labels", "split"):
        values = fields[name].values if name in fields else None
        if values is not None and len(wrong := values[~np.isin(values, (0, 1))]):
            raise UserError(f"{path}: {name}: found {wrong[0]}; wanted 0 or 1")
    own.check(path, fields)
    if "test_images" in fields:
        raise UserError(f"{path}: test_images: found a test part of its own; wanted split, 1 for a test image")
    shape = fields["images"].shape
    if shape[1:3] != (SIZE, SIZE):
        raise UserError(f"{path}: images: found {fields['images']}; wanted uint8 (N, {SIZE}, {SIZE}, C)")
    values = {name: array.values for name, array in fields.items() if name != "images"}
    for name, value in values.items():
        if value is None or len(value) != shape[0]:
            raise UserError(f"{path}: {name}: found {fields[name]}; wanted whole numbers ({shape[0]},)")
    source, fields = stored.in_one_piece(path, fields)
    images = stored.Rows(source, fields["images"].offset, shape)
    group = values.get("group", np.arange(shape[0]))
    return images, values["labels"].astype(np.int64), values.get("split"), group
