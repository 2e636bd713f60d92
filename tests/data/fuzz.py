"""Fuzzes a reader, guided by the code that it reaches: pip install atheris, then

    python tests/data/fuzz.py READER [-max_total_time=600] [other options of libFuzzer]

READER is one of the names below. Whatever bytes a file has, a reader returns or raises UserError, within the memory and
the time that libFuzzer allows (-rss_limit_mb, -timeout). The corpus begins with a file that is read.
"""

import contextlib
import gzip
import io
import json
import logging
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "lab")]

import atheris  # noqa: E402
import h5py  # noqa: E402
import numpy as np  # noqa: E402
import scipy.io  # noqa: E402
from PIL import Image  # noqa: E402

with atheris.instrument_imports(include=["minifit"]):
    from minifit import UserError, data, files, stages
    from minifit.data import cifar, mnist, stored, svhn
    from minifit.lab import records, teachers

IMAGES, LABELS = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), np.uint8), np.arange(10) % 2


def written(write):
    """The bytes that a function writes to a file."""
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def an_h5(**fields):
    def write(buffer):
        with h5py.File(buffer, "w") as file:
            for name, value in fields.items():
                file[name] = value

    return written(write)


def some_faces():
    """Four groups of a face and another image each, of which the split takes one for testing."""
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), np.uint8)
    groups = np.arange(8) // 2
    return an_h5(images=images, labels=np.arange(8) % 2, split=(groups == 2).astype(np.uint8), group=groups)


def archive():
    def write(buffer):
        with tarfile.open(fileobj=buffer, mode="w:gz") as file:
            for name in (*cifar.CIFAR10.train, "test_batch.bin"):
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = 3073
                file.addfile(member, io.BytesIO(bytes(3073)))

    return written(write)


def a_stage():
    """The file of a stage, as small as it can be."""
    weights = {"w": np.zeros(3, np.float32)}
    rng = np.random.default_rng(0).bit_generator.state
    settings = {"experiment": "e", "preset": "p", "seed": 0, "data": "d", "images": "i"}
    settings |= {"train": 1, "validation": 1, "test": None, "retrain": False}
    record = {"identity": {"settings": settings, "stage": "s", "teacher": "t", "start": "u"}, "epoch": 1}
    record |= {"best_epoch": 1, "best_loss": None, "best_errors": None, "finished": True, "rng": rng, "network": None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.h5"
        files.save(path, record, best=weights)
        return path.read_bytes()


def of_own(path):
    loaded = data.load("own", file=path)
    assert loaded.images[:].shape == loaded.images.shape and len(loaded.labels) == len(loaded.images)


def of_faces(path):
    loaded = data.load("faces", file=path)
    for images, labels, groups in (
        (loaded.images, loaded.labels, loaded.groups),
        (loaded.test_images, loaded.test_labels, loaded.test_groups),
    ):
        assert images.shape[1:3] == (16, 16) and len(images) == len(labels) == len(groups)
        assert {*labels.tolist()} == {0, 1}
    assert not {*loaded.groups.tolist()} & {*loaded.test_groups.tolist()}


def of_svhn(path):
    stored.guarded(lambda path: sum(len(part) for part in svhn._images(path, len(svhn._labels(path)))), path)


def of_cifar(path):
    """Reads the archive, or the loose files of which this is the first."""
    for name in (*cifar.CIFAR10.train, "test_batch.bin") if path.suffix == ".bin" else ():
        if name != path.name:
            (path.parent / name).write_bytes(bytes(3073))
    loaded = data.load("cifar10", path.parent)
    for images, labels in ((loaded.images, loaded.labels), (loaded.test_images, loaded.test_labels)):
        assert images.shape == (len(labels), 32, 32, 3) and len(labels) and labels.max() < 10


def in_this_process(function, *arguments, size=0):
    """In place of `stored.guarded`, whose child makes one line of any exception and hides what is reached."""
    try:
        return function(*arguments)
    except Exception as error:
        raise UserError(str(error)) from None


def a_mat():
    content = {"X": np.zeros((32, 32, 3, 1), np.uint8), "y": [[1]]}
    return written(lambda buffer: scipy.io.savemat(buffer, content))


def a_summary():
    path = ROOT / "results" / "runs" / "mnist" / "seed0" / "summary.json"
    found = json.loads(path.read_text())
    found["stages"] = dict([*found["stages"].items()][:1])
    return json.dumps(found | {"sha256": records.seal(found)}).encode()


def a_model():
    import onnx

    node = onnx.helper.make_node("Flatten", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["n", 1, 2, 1]), ("y", ["n", 2]))]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:])).SerializeToString()


def pictures(path):
    """A folder of two classes, in which one picture is the file."""
    for name in ("a", "b"):
        (path.parent / "pictures" / name).mkdir(parents=True, exist_ok=True)
        for i in range(2, 7):
            Image.fromarray(IMAGES[i]).save(path.parent / "pictures" / name / f"{i}.png")
    path.replace(path.parent / "pictures" / "a" / "1.png")
    of_own(path.parent / "pictures")


IDX = b"\0\0\x08\x03" + np.array([1, 28, 28], ">u4").tobytes() + bytes(784)
READERS = {  # name -> (the name of a file, what reads it, a file that is read)
    "idx": ("images", lambda path: mnist._read(path, 3), lambda: IDX),
    "gz": ("images.gz", lambda path: mnist._read(path, 3), lambda: gzip.compress(IDX)),
    "cifar": ("cifar-10-binary.tar.gz", of_cifar, archive),
    "bin": ("data_batch_1.bin", of_cifar, lambda: bytes(3073)),
    "svhn": ("a.mat", of_svhn, a_mat),
    "npz": ("a.npz", of_own, lambda: written(lambda b: np.savez_compressed(b, images=IMAGES, labels=LABELS))),
    "h5": ("a.h5", of_own, lambda: an_h5(images=IMAGES, labels=LABELS)),
    "faces": ("a.h5", of_faces, some_faces),
    "picture": ("1.png", pictures, lambda: written(lambda b: Image.fromarray(IMAGES[0]).save(b, "png"))),
    "stage": ("s.h5", stages.load, a_stage),
    "json": ("summary.json", records.read_summary, a_summary),
    "onnx": ("a.onnx", lambda path: teachers.Onnx(path).logits(), a_model),
}


def main(name, options):
    file, read, example = READERS[name]
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    (corpus := folder / "corpus").mkdir()
    (corpus / "example").write_bytes(example())
    os.environ["XDG_CACHE_HOME"] = str(folder)
    logging.disable()
    path = folder / file
    path.write_bytes(example())
    read(path)  # the example is one that is read

    def once(content):
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            read(path)
        shutil.rmtree(folder / "minifit", ignore_errors=True)  # the copies that readers make

    stored.guarded = in_this_process
    atheris.Setup([sys.argv[0], *options, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
