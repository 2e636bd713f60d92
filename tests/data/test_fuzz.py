"""The fuzzer's readers read the examples from which it starts. That needs no atheris, which guides the fuzzer."""

import contextlib
import sys
import types

import pytest

sys.modules.setdefault("atheris", types.SimpleNamespace(instrument_imports=lambda include: contextlib.nullcontext()))
import fuzz  # noqa: E402


@pytest.mark.parametrize("name", fuzz.READERS)
def test_every_example_is_read(name, tmp_path, monkeypatch):
    if name == "onnx":
        pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    file, read, example = fuzz.READERS[name]
    (tmp_path / file).write_bytes(example())
    read(tmp_path / file)
