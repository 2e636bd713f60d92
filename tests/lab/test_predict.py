"""`run.py predict`: pictures and arrays in, a class and a probability a line out, and one line for what is none."""

import json

import h5py
import numpy as np
import pytest
from exported import IMAGE, command, pictures, refused, saved, small
from PIL import Image

from minifit.model import load


@pytest.fixture
def path(tmp_path):
    return saved(tmp_path / "a.h5")


def as_picture(path, image):
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
    return path


def test_a_picture_has_the_class_and_probability_of_its_pixels(path, tmp_path, capsys):
    images = pictures(2)
    names = [as_picture(tmp_path / f"{i}.png", image) for i, image in enumerate(images)]
    status, out, err = command(capsys, "predict", path, *names)
    expected = load(path)(images)
    lines = [line.split() for line in out.splitlines()]
    assert status == 0 and err == "" and [line[0] for line in lines] == list(map(str, names))
    assert [int(line[1]) for line in lines] == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose([float(line[2]) for line in lines], expected.max(axis=1), atol=1e-4)


def test_arrays_are_answered_image_by_image_in_both_forms(path, tmp_path, capsys):
    images = pictures(70)
    np.save(tmp_path / "a.npy", images)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"] = images
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("images", data=images, compression="gzip")
    expected = load(path)(images)
    for name in ("a.npy", "b.h5", "c.h5"):
        status, out, _ = command(capsys, "predict", path, tmp_path / name, "--json")
        found = [json.loads(line) for line in out.splitlines()]
        assert status == 0 and [one["index"] for one in found] == list(range(70))
        assert [one["class"] for one in found] == expected.argmax(axis=1).tolist()
        np.testing.assert_allclose([one["probabilities"] for one in found], expected, atol=1e-6)
    lines = command(capsys, "predict", path, tmp_path / "a.npy")[1].splitlines()
    assert len(lines) == 70 and lines[3].startswith(f"{tmp_path / 'a.npy'}[3]  ")
    np.save(tmp_path / "one.npy", images[0])
    assert command(capsys, "predict", "--json", path, tmp_path / "one.npy")[1].count("\n") == 1


def test_a_picture_of_another_size_and_of_colours_is_resized_and_said_so(path, tmp_path, capsys):
    big = np.kron(pictures(1)[0], np.ones((10, 10, 1), np.uint8))
    Image.fromarray(big[..., 0]).convert("RGBA").save(tmp_path / "big.png")
    _, out, err = command(capsys, "predict", path, tmp_path / "big.png", "--json")
    assert "resized from 120x110 to 12x11" in err
    np.testing.assert_allclose(json.loads(out)["probabilities"], load(path)(pictures(1))[0], atol=1e-6)


def test_a_picture_is_seen_upright_and_without_its_transparency(path, tmp_path, capsys):
    image = pictures(1)[0][..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(np.rot90(image).copy()).save(tmp_path / "turned.png", exif=exif)
    clear = np.stack([image, np.zeros_like(image)], axis=-1)
    Image.fromarray(clear, "LA").save(tmp_path / "clear.png")
    for name, notes in (("turned.png", ""), ("clear.png", f"{tmp_path / 'clear.png'}: its transparency is left out\n")):
        _, out, err = command(capsys, "predict", path, tmp_path / name, "--json")
        assert err == notes
        np.testing.assert_allclose(json.loads(out)["probabilities"], load(path)(pictures(1))[0], atol=1e-6)


def test_a_network_for_colours_sees_them(tmp_path, capsys):
    image = 6, 5, 3
    path = saved(tmp_path / "a.h5", small(image), image)
    name = as_picture(tmp_path / "x.bmp", pictures(1, image)[0])
    out = command(capsys, "predict", path, name, "--json")[1]
    np.testing.assert_allclose(json.loads(out)["probabilities"], load(path)(pictures(1, image))[0], atol=1e-6)


def test_what_is_no_image_for_this_network_is_one_line_before_any_answer(path, tmp_path, capsys):
    good = as_picture(tmp_path / "good.png", pictures(1)[0])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    np.save(tmp_path / "floats.npy", pictures(2).astype(float))
    np.save(tmp_path / "wide.npy", pictures(2, (12, 12, 1)))
    Image.fromarray(np.full((12, 11), 300, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((12, 11), 300, np.float32)).save(tmp_path / "deep.tiff")
    frames = [Image.fromarray(picture[..., 0]) for picture in pictures(2)]
    frames[0].save(tmp_path / "several.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "small.tiff", compression="tiff_lzw")
    Image.new("1", (12000, 12000)).save(tmp_path / "huge.png")  # Pillow warns of it
    as_picture(tmp_path / "big.png", np.zeros((24, 22, 1), np.uint8))
    negative = b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 12, 11, 1), }".ljust(117) + b"\n"
    (tmp_path / "negative.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(negative).to_bytes(2, "little") + negative)
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["pixels"] = pictures(1)
    for name, reason in {
        "text.png": "found no picture",
        "cut.png": "found a damaged picture",
        "several.gif": "found 2 pictures in it; wanted one",
        "small.tiff": "found a compressed TIFF",
        "huge.png": "found 12000x12000 pixels; wanted at most 100,000,000",
        "empty.npy": "no array of numbers",
        "floats.npy": "found float64",
        "wide.npy": "wanted uint8 (N, 12, 11, 1)",
        "objects.npy": "no array of numbers",
        "negative.npy": "no array of numbers",
        "deep.png": "found 16 bits per channel; wanted 8",
        "deep.tiff": "found a picture of kind F; wanted 8 bits per channel",
        "other.h5": "has no images",
        "none.png": "No such file",
    }.items():
        line = refused(capsys, "predict", path, good, tmp_path / "big.png", tmp_path / name)
        assert reason in line and name in line
    assert "predict: wanted" in refused(capsys, "predict", path)
    assert "does not classify" in refused(
        capsys, "predict", saved(tmp_path / "h.h5", small()[:1], IMAGE, classifies=False), good
    )
