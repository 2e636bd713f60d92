"""The download of MNIST against servers on this machine that misbehave in every way a mirror does."""

import gzip
import hashlib

import numpy as np
import pytest
from servers import BAD, PAGE, intact, nobody, started

from minifit import UserError, data
from minifit.data import mnist


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def published(monkeypatch, tmp_path):
    """{file: bytes} of a set of three images that passes for the official one; an empty cache, no proxy."""
    files, table = {}, {}
    for name in mnist.FILES:
        content = idx(np.arange(3 * 28 * 28).reshape(3, 28, 28) % 251 if "images" in name else np.array([3, 1, 4]))
        files[f"{name}.gz"] = gzip.compress(content)
        md5 = hashlib.md5(files[f"{name}.gz"]).hexdigest()
        table[name] = (md5, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(mnist, "FILES", table)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache")
    monkeypatch.delenv("MINIFIT_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return files


@pytest.fixture
def mirror():
    with started() as start:
        yield start


def in_cache(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "mnist").iterdir())


def test_a_download_is_read_kept_and_not_repeated(published, mirror, tmp_path, capfd):
    server, address = mirror(intact(published))
    for _ in range(2):
        loaded = data.load("mnist", progress=True, mirrors=(address,))
        assert loaded.name == "MNIST" and loaded.labels.tolist() == [3, 1, 4]
        assert sorted(server.asked) == in_cache(tmp_path) == sorted(published), "each file once"
    assert capfd.readouterr() == ("", ""), "silent where there is no terminal"


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_mirror_is_passed_over_for_the_next(published, mirror, tmp_path, capfd, bad):
    answer, _ = BAD[bad]
    _, address = mirror(lambda file: answer(published[file]))
    server, good = mirror(intact(published))
    assert data.load("mnist", mirrors=(address, good)).name == "MNIST"
    assert sorted(server.asked) == in_cache(tmp_path) == sorted(published)
    assert capfd.readouterr() == ("", "")


def test_a_mirror_that_fails_half_way_leaves_the_next_only_the_rest(published, mirror):
    first, *rest = published
    _, address = mirror(lambda file: intact(published)(file) if file == first else (404, PAGE, len(PAGE)))
    server, good = mirror(intact(published))
    assert data.load("mnist", mirrors=(address, good)).name == "MNIST"
    assert server.asked == rest


@pytest.mark.parametrize("bad", BAD)
def test_when_all_mirrors_fail_one_line_says_why_and_nothing_is_left_behind(published, mirror, tmp_path, bad):
    answer, words = BAD[bad]
    _, address = mirror(lambda file: answer(published[file]))
    nowhere = nobody()
    with pytest.raises(UserError) as caught:
        data.load("mnist", mirrors=(address, nowhere))
    line = str(caught.value)
    assert "\n" not in line
    assert f"{address.split('/')[2]}: {words}" in line and f"{nowhere.split('/')[2]}: no connection" in line
    for part in (tmp_path / "cache", *mnist.FILES, "--data-dir", "run.py digits"):
        assert str(part) in line
    assert in_cache(tmp_path) == []


def test_a_damaged_file_in_the_folder_is_downloaded_again(published, mirror, tmp_path):
    server, address = mirror(intact(published))
    damaged = next(iter(published))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / damaged).write_bytes(published[damaged][:-5])
    mnist.download(tmp_path / "here", mirrors=(address,))
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == published
    assert len(server.asked) == 4


def test_a_cache_that_cannot_be_made_is_one_line(published, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError) as caught:
        data.load("mnist", mirrors=(nobody(),))
    assert f"{tmp_path / 'cache' / 'mnist'}: Not a directory" in str(caught.value)


def test_an_explicit_folder_without_the_files_downloads_nothing(published, mirror, tmp_path):
    server, address = mirror(intact(published))
    with pytest.raises(UserError, match="has no"):
        data.load("mnist", tmp_path, mirrors=(address,))
    assert server.asked == []


@pytest.mark.parametrize(
    ("limit", "value", "said"), [("LARGEST", 10, "more than 10 bytes"), ("GRACE", -1e9, "a second")]
)
def test_a_download_that_is_too_long_or_too_slow_is_given_up(
    limit, value, said, published, mirror, tmp_path, monkeypatch
):
    monkeypatch.setattr(mnist.files, limit, value)
    _, address = mirror(intact(published))
    with pytest.raises(UserError, match=said):
        data.load("mnist", mirrors=(address,))
    assert in_cache(tmp_path) == []
