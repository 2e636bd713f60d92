"""Reading and downloading CIFAR-10 and CIFAR-100: the published format, and every way in which a set can be wrong."""

import gzip
import hashlib
import io
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from changes import changed
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import BAD, intact, nobody, started

from minifit import UserError, data
from minifit.data import cifar, files

REAL = os.environ.get("MINIFIT_DATA")
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]
NAMES = {"cifar10": [*BATCHES, "test_batch.bin"], "cifar100": ["train.bin", "test.bin"]}
INSIDE = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
ARCHIVE = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}
TITLE = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
RECORD = {"cifar10": 3073, "cifar100": 3074}

both = pytest.mark.parametrize("which", ["cifar10", "cifar100"])


@pytest.fixture(autouse=True)
def nothing_from_this_machine(monkeypatch, tmp_path):
    """No test meets the files or the cache of whoever runs it, nor the network beyond this machine."""
    monkeypatch.delenv("MINIFIT_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("HTTPS_PROXY", nobody())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def record(which, image, label):
    """One image as published: its label or labels, then all of red, all of green, all of blue."""
    labels = bytes([label]) if which == "cifar10" else bytes([label % 20, label])
    return labels + b"".join(bytes([image[row, column, c] for row in range(32) for column in range(32)])
                             for c in range(3))  # fmt: skip


def small_set(which, train=2, test=3, seed=0):
    """{file: (images, labels)}"""
    rng = np.random.default_rng(seed)
    classes = 10 if which == "cifar10" else 100
    arrays = {}
    for name in NAMES[which]:
        count = test if "test" in name else train
        arrays[name] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, classes, count)
    return arrays


def published(which, arrays):
    """{file: bytes}"""
    return {name: b"".join(record(which, *pair) for pair in zip(*both, strict=True)) for name, both in arrays.items()}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def tar(files, inside):
    """A tar.gz of files and of a few things besides, as the published ones have."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo(inside)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in {"readme.html": b"<html>", **files, "batches.meta.txt": b"airplane\n"}.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def loose(which, folder, files):
    write(folder, files)


def loose_in_the_archives_folder(which, folder, files):
    write(folder / INSIDE[which], files)


def archived(which, folder, files):
    write(folder, {ARCHIVE[which]: tar(files, INSIDE[which])})


WAYS = [loose, loose_in_the_archives_folder, archived]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


def refusal(which, folder):
    """The one line with which a folder is refused."""
    with pytest.raises(UserError) as caught:
        data.load(which, folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


@both
@ways
@pytest.mark.parametrize("subfolder", [".", "own"])
def test_what_was_written_is_what_is_read(tmp_path, which, way, subfolder):
    arrays = small_set(which)
    way(which, tmp_path / (which if subfolder == "own" else "."), published(which, arrays))
    loaded = data.load(which, tmp_path)
    *train, test = NAMES[which]
    for images, labels, stored in (
        (loaded.images, loaded.labels, [np.concatenate(parts) for parts in zip(*map(arrays.get, train), strict=True)]),
        (loaded.test_images, loaded.test_labels, arrays[test]),
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int64 and images.flags.c_contiguous
        assert images.shape == (len(labels), 32, 32, 3)
        np.testing.assert_array_equal(images, stored[0])
        np.testing.assert_array_equal(labels, stored[1])


@both
def test_images_come_as_bytes_laid_out_as_they_are_indexed(tmp_path, which):
    loose(which, tmp_path, published(which, small_set(which)))
    _, *arrays = cifar.load(which, tmp_path)
    assert all(a.dtype == np.uint8 and a.flags.c_contiguous for a in arrays)


@both
def test_the_archives_own_folder_may_be_named_itself(tmp_path, which):
    loose_in_the_archives_folder(which, tmp_path, published(which, small_set(which)))
    assert len(data.load(which, tmp_path / INSIDE[which]).test_images) == 3


@both
def test_files_in_no_special_order_in_an_archive_and_links_beside_them(tmp_path, which):
    arrays = small_set(which)
    files = published(which, arrays)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("elsewhere/test_batch_7.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name in reversed(NAMES[which]):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    write(tmp_path, {ARCHIVE[which]: buffer.getvalue()})
    np.testing.assert_array_equal(data.load(which, tmp_path).labels[:2], arrays[NAMES[which][0]][1])


def test_the_classes_of_cifar_100_are_the_fine_labels(tmp_path):
    pixels = bytes(3072)
    write(
        tmp_path, {"train.bin": bytes([19, 99]) + pixels + bytes([0, 20]) + pixels, "test.bin": bytes([3, 4]) + pixels}
    )
    loaded = data.load("cifar100", tmp_path)
    assert loaded.labels.tolist() == [99, 20] and loaded.test_labels.tolist() == [4]


@both
def test_a_data_dir_is_the_only_place_searched_then_the_environment_then_the_cache(tmp_path, monkeypatch, which):
    def put(folder, test):
        loose(which, tmp_path / folder, published(which, small_set(which, test=test)))
        return tmp_path / folder

    def count(folder=None):
        return len(data.load(which, folder).test_images)

    put(f"cache/minifit/{which}", test=1)
    assert count() == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("MINIFIT_DATA", str(tmp_path / "elsewhere"))
    assert count() == 1, "an environment without the files falls through to the cache"
    put(f"elsewhere/{which}", test=2)
    assert count() == 2
    assert count(put("given", test=3)) == 3
    (tmp_path / "empty").mkdir()
    line = refusal(which, tmp_path / "empty")
    assert line.startswith(f"{tmp_path / 'empty'} has no {ARCHIVE[which]}, and of its files lacks {NAMES[which][0]}")
    assert "not a folder" in refusal(which, tmp_path / "absent")


@both
def test_loose_files_go_before_an_archive_and_an_archive_before_half_of_the_files(tmp_path, which):
    archived(which, tmp_path, published(which, small_set(which, test=1)))
    files = published(which, small_set(which, test=2))
    loose(which, tmp_path, files)
    assert len(data.load(which, tmp_path).test_images) == 2
    (tmp_path / NAMES[which][0]).unlink()
    assert len(data.load(which, tmp_path).test_images) == 1


def test_only_what_is_missing_is_called_missing(tmp_path):
    loose("cifar10", tmp_path / "cifar10", published("cifar10", small_set("cifar10")))
    (tmp_path / "cifar10" / "data_batch_3.bin").unlink()
    assert "and of its files lacks data_batch_3.bin (there or in its folders" in refusal("cifar10", tmp_path)
    (tmp_path / "cifar10" / "test_batch.bin").unlink()
    assert "lacks data_batch_3.bin, test_batch*.bin (there" in refusal("cifar10", tmp_path)


def test_both_sets_may_lie_in_one_folder(tmp_path):
    for which in NAMES:
        loose(which, tmp_path, published(which, small_set(which, test=1 + len(which))))
    for which in NAMES:
        assert len(data.load(which, tmp_path).test_images) == 1 + len(which)
    (tmp_path / "test.bin").unlink()
    assert "lacks test.bin (there" in refusal("cifar100", tmp_path), "and not test_batch.bin in its place"


@both
def test_a_file_missing_from_an_archive_is_one_line(tmp_path, which):
    files = published(which, small_set(which))
    del files[NAMES[which][0]]
    archived(which, tmp_path, files)
    assert refusal(which, tmp_path) == f"{tmp_path / ARCHIVE[which]}: has no {NAMES[which][0]} in it"


@ways
def test_a_test_file_may_say_in_its_name_how_short_it_is(tmp_path, way):
    files = published("cifar10", small_set("cifar10"))
    files["test_batch_3.bin"] = files.pop("test_batch.bin")
    way("cifar10", tmp_path, files)
    assert len(data.load("cifar10", tmp_path).test_images) == 3


@ways
def test_the_whole_test_file_goes_before_shortened_ones_and_of_two_shortened_ones_none_is_guessed(tmp_path, way):
    files = published("cifar10", small_set("cifar10"))
    short = files["test_batch.bin"][:3073]
    way("cifar10", tmp_path, {**files, "test_batch_1.bin": short})
    assert len(data.load("cifar10", tmp_path).test_images) == 3
    del files["test_batch.bin"]
    way("cifar10", tmp_path / "two", {**files, "test_batch_1.bin": short, "test_batch_2.bin": 2 * short})
    line = refusal("cifar10", tmp_path / "two")
    assert line.endswith("test_batch_1.bin and test_batch_2.bin: only one of them can be the test set")
    assert line.startswith(str(tmp_path / "two"))


WRONG = {
    "empty": (lambda good, size: b"", "no images in it"),
    "a byte short": (lambda good, size: good[:-1], "cut off or no CIFAR-10"),
    "a byte long": (lambda good, size: good + b"\0", "bytes are not whole records of"),
    "an error page": (lambda good, size: b"<!DOCTYPE html>\n<h1>404</h1>", "it begins with b'<!DOCTYPE html>"),
    "an error page of the right size": (lambda good, size: b"<!DOCTYPE html>".ljust(size), "label 60 in record 0"),
    "zipped": (
        lambda good, size: gzip.compress(good, mtime=0),
        "it begins with b'\\x1f\\x8b",
    ),  # the time of day may be a quote, which repr doubles
    "a label too high": (lambda good, size: good[:size] + b"\xc8" + good[size + 1 :], "label 200 in record 1, where 0"),
}


@both
@ways
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("position", [0, -1])
def test_a_wrong_file_is_one_line_with_its_name_and_the_reason(tmp_path, which, way, wrong, position):
    change, reason = WRONG[wrong]
    files = published(which, small_set(which))
    name = NAMES[which][position]
    files[name] = change(files[name], RECORD[which])
    way(which, tmp_path, files)
    line = refusal(which, tmp_path)
    place = {
        loose: tmp_path / name,
        loose_in_the_archives_folder: tmp_path / INSIDE[which] / name,
        archived: f"{tmp_path / ARCHIVE[which]}: {INSIDE[which]}/{name}",
    }[way]
    assert line.startswith(f"{place}: ") and reason in line


def test_each_label_of_a_record_has_its_own_bounds(tmp_path):
    good = bytes([19, 99]) + bytes(3072)
    for wrong, reason in (
        ([20, 99], "label 20 in record 0, where 0 to 19"),
        ([19, 100], "label 100 in record 0, where 0"),
    ):
        write(tmp_path, {"train.bin": bytes(wrong) + bytes(3072), "test.bin": good})
        assert reason in refusal("cifar100", tmp_path)


DAMAGED = {
    "empty": lambda good: b"",
    "an error page": lambda good: b"<!DOCTYPE html>\n<h1>404</h1>",
    "cut in half": lambda good: good[: len(good) // 2],
    "cut in its trailer": lambda good: good[:-3],
    "a wrong checksum": lambda good: good[:-6] + bytes(6),
    "garbled": lambda good: good[:12] + b"\xff" * 500 + good[512:],
    "a zipped error page": lambda good: gzip.compress(b"<html>" * 200),
    "a zipped nothing": lambda good: gzip.compress(b""),
    "a cut tar, zipped whole": lambda good: gzip.compress(gzip.decompress(good)[:7000]),
}


@both
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_archive_is_one_line_with_its_name(tmp_path, which, damage):
    good = tar(published(which, small_set(which)), INSIDE[which])
    write(tmp_path, {ARCHIVE[which]: DAMAGED[damage](good)})
    line = refusal(which, tmp_path)
    assert line.startswith(f"{tmp_path / ARCHIVE[which]}: damaged archive: ") and len(line) < len(str(tmp_path)) + 150


@both
@pytest.mark.parametrize("way", [loose, archived])
def test_of_a_damaged_file_in_the_cache_the_line_says_how_to_get_another(tmp_path, which, way):
    files = published(which, small_set(which))
    files[NAMES[which][0]] = b"half"
    way(which, tmp_path / "cache" / "minifit" / which, files)
    way(which, tmp_path / "given", files)
    assert refusal(which, None).endswith("; remove it to download it again")
    assert "remove" not in refusal(which, tmp_path / "given")


@pytest.mark.parametrize("name", ["data_batch_2.bin", "cifar-10-binary.tar.gz"])
def test_a_folder_in_place_of_a_file_is_one_line(tmp_path, name):
    if name in BATCHES:
        loose("cifar10", tmp_path, published("cifar10", small_set("cifar10")))
        (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert refusal("cifar10", tmp_path) == f"{tmp_path / name}: Is a directory"


def made_official(monkeypatch, which, files):
    """Lets these files pass for the published ones, and their archive too."""
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    *train, test = NAMES[which]
    archive = tar(files, INSIDE[which])
    monkeypatch.setitem(cifar.SETS, which, replace(
        cifar.SETS[which],
        checksum=f"sha256:{hashlib.sha256(archive).hexdigest()}",
        train={name: sha256[name] for name in train},
        test_sha256=sha256[test],
    ))  # fmt: skip
    return archive


@both
@ways
def test_only_the_official_bytes_are_called_cifar(tmp_path, monkeypatch, which, way):
    def name(files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        way(which, folder, files)
        return data.load(which, folder).name

    files, other = (published(which, small_set(which, seed=seed)) for seed in (0, 1))
    assert name(files).startswith(f"a set in {TITLE[which]}'s format (")
    assert name(files) == name(files) != name(other)

    made_official(monkeypatch, which, files)
    assert name(files) == TITLE[which]
    assert name(other).startswith(f"a set in {TITLE[which]}'s format (")
    *_, test = NAMES[which]
    short = files[test][: 2 * RECORD[which]]
    assert (
        name({**files, test: short}) == f"{TITLE[which]} with 2 test images ({hashlib.sha256(short).hexdigest()[:8]})"
    )
    assert name({**files, test: other[test]}).startswith(f"{TITLE[which]} with 3 test images (")
    first = NAMES[which][0]
    assert name({**files, first: files[first][: RECORD[which]]}).startswith(f"a set in {TITLE[which]}'s format (")


@pytest.fixture
def mirror():
    with started() as start:
        yield start


def in_cache(tmp_path, which):
    return sorted(path.name for path in (tmp_path / "cache" / "minifit" / which).iterdir())


@both
def test_a_download_is_read_kept_and_not_repeated(monkeypatch, mirror, tmp_path, which, capfd):
    arrays = small_set(which)
    files = {ARCHIVE[which]: made_official(monkeypatch, which, published(which, arrays))}
    server, address = mirror(intact(files))
    for _ in range(2):
        loaded = data.load(which, progress=True, mirrors=(address,))
        assert loaded.name == TITLE[which]
        np.testing.assert_array_equal(loaded.test_labels, arrays[NAMES[which][-1]][1])
    assert server.asked == in_cache(tmp_path, which) == list(files), "once"
    assert capfd.readouterr() == ("", ""), "silent where there is no terminal"


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_mirror_is_passed_over_for_the_next_and_nothing_of_it_is_kept(monkeypatch, mirror, tmp_path, bad):
    answer, words = BAD[bad]
    files = {ARCHIVE["cifar10"]: made_official(monkeypatch, "cifar10", published("cifar10", small_set("cifar10")))}
    _, address = mirror(lambda file: answer(files[file]))
    nowhere = nobody()
    with pytest.raises(UserError) as caught:
        data.load("cifar10", mirrors=(address, nowhere))
    line = str(caught.value)
    assert "\n" not in line
    assert f"{address.split('/')[2]}: {words}" in line and f"{nowhere.split('/')[2]}: no connection" in line
    assert line.startswith("CIFAR-10 is not in ")
    for part in (tmp_path / "cache", "put cifar-10-binary.tar.gz into", "--data-dir"):
        assert str(part) in line
    assert in_cache(tmp_path, "cifar10") == []

    server, good = mirror(intact(files))
    assert data.load("cifar10", mirrors=(address, good)).name == "CIFAR-10"
    assert server.asked == in_cache(tmp_path, "cifar10") == list(files)


@pytest.fixture(scope="module")
def real():
    try:
        return cifar.load("cifar10", REAL) if REAL else pytest.skip("MINIFIT_DATA is not set")
    except UserError as error:
        if "lacks" in str(error):
            pytest.skip("MINIFIT_DATA names no folder with CIFAR-10")
        raise


def test_the_real_cifar_10_is_recognised(real):
    name, images, labels, test_images, test_labels = real
    assert name == "CIFAR-10" or name.startswith(f"CIFAR-10 with {len(test_images):,} test images (")
    assert images.shape == (50000, 32, 32, 3) and len(test_images) == len(test_labels) <= 10000
    assert labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert np.bincount(labels).tolist() == [5000] * 10
    # the channels' known means, which neither another order of the planes nor another set has
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), [125.31, 122.95, 113.87], atol=0.01)
    # rows and columns are not confused: the upper rows, where the sky is, are bluer
    assert (images[:, :8].mean(axis=(0, 1, 2)) - images[:, -8:].mean(axis=(0, 1, 2)))[2] > 10


def archive(folder, *members):
    """A folder with an archive of (member, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        for member, content in members:
            out.addfile(member, io.BytesIO(content))
    return write(folder, {ARCHIVE["cifar10"]: buffer.getvalue()})


def member(name, size, **more):
    found = tarfile.TarInfo(f"{INSIDE['cifar10']}/{name}")
    found.size = size
    for key, value in more.items():
        setattr(found, key, value)
    return found


def test_an_archive_that_names_a_file_twice_is_one_line(tmp_path):
    content = published("cifar10", small_set("cifar10"))[BATCHES[0]]
    twice = (member(BATCHES[0], len(content)), content)
    assert "names data_batch_1.bin twice" in refusal("cifar10", archive(tmp_path, twice, twice))


def test_an_archive_with_holes_is_one_line(tmp_path):
    holes = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(2**42), "GNU.sparse.map": "0,0"}
    member_ = member(BATCHES[0], 0, pax_headers=holes)
    assert "has holes" in refusal("cifar10", archive(tmp_path, (member_, b"")))


@both
@settings(max_examples=40)
@given(draw=st.data())
def test_damaged_files_are_read_or_are_one_line(which, draw, tmp_path_factory):
    """One of the loose files, the tar inside the archive, or the archive itself."""
    folder, contents = tmp_path_factory.mktemp("fuzz"), published(which, small_set(which, train=1, test=1))
    where = draw.draw(st.sampled_from(["loose", "tar", "archive"]))
    if where == "loose":
        name = draw.draw(st.sampled_from(NAMES[which]))
        write(folder, contents | {name: changed(draw.draw, contents[name], 2)})
    else:
        content = tar(contents, INSIDE[which])
        inside = changed(draw.draw, gzip.decompress(content), 512) if where == "tar" else None
        content = gzip.compress(inside, 1) if where == "tar" else changed(draw.draw, content, 20)
        write(folder, {ARCHIVE[which]: content})
    try:
        loaded = data.load(which, folder)
    except UserError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
        return
    for images, labels in ((loaded.images, loaded.labels), (loaded.test_images, loaded.test_labels)):
        assert images.shape == (len(labels), 32, 32, 3) and len(labels) and labels.max() < (10, 100)["100" in which]
    assert loaded.name.startswith(f"a set in {TITLE[which]}'s format")


@settings(max_examples=40)
@given(draw=st.data())
def test_an_archive_of_any_structure_is_read_or_is_one_line(draw, tmp_path_factory):
    """Members of any kind and size, under the names of the files, some of them missing."""
    folder, members = tmp_path_factory.mktemp("fuzz"), []
    whole = draw.draw(st.booleans())
    for name in NAMES["cifar10"]:
        if not whole and not draw.draw(st.integers(0, 5)):
            continue
        size = 3073 if whole else draw.draw(st.sampled_from([3073, 6146, 0, 1, 3072]))
        kind = (
            tarfile.REGTYPE if whole else draw.draw(st.sampled_from([b"0", b"0", b"0", b"1", b"2", b"3", b"5", b"6"]))
        )
        of_folder = draw.draw(st.sampled_from(["", "../", "/", "a/b/"]))
        content = bytes([draw.draw(st.integers(0, 11))]) * size
        found = member(name, size, type=kind, linkname="/etc/passwd")
        found.name = of_folder + name
        members.append((found, content))
    archive(folder, *draw.draw(st.permutations(members)))
    try:
        loaded = data.load("cifar10", folder)
    except UserError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
    else:
        assert len(loaded.images) == len(loaded.labels) and loaded.labels.max() < 10 and len(loaded.test_images)


def test_an_archive_inflates_no_further_than_its_size_allows(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PLENTY", 2**20)
    bomb = archive(tmp_path, (member(BATCHES[0], 2**22), bytes(2**22)))
    assert "inflates to more than 1,048,576 bytes" in refusal("cifar10", bomb)
