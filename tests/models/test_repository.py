"""Triton's repository: a version is there whole or not at all, and described rightly."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.lib.errors import Unavailable
from apps.models.models import ModelVersion, RegisteredModel, ServingCluster
from apps.models.repository import place_version, remove_version, render_config
from tests.rollouts.factories import make_signature


def version(path: str = "", *, batched: bool = True) -> ModelVersion:
    model = RegisteredModel(name="digits", max_batch_size=8)
    return ModelVersion(
        model=model, number=4, signature=make_signature(), batched=batched, artifact_path=path
    )


def cluster(path: Path) -> ServingCluster:
    return ServingCluster(name="local", endpoints=[], repository_path=str(path))


def test_a_batched_version_leaves_the_batch_dimension_to_triton() -> None:
    config = render_config(version())
    assert 'name: "digits.4"' in config
    assert "max_batch_size: 8" in config
    assert 'input [ { name: "pixels" data_type: TYPE_FP32 dims: [ 64 ] } ]' in config
    assert "versions: [ 4 ]" in config


def test_a_version_without_a_batch_dimension_names_all_its_dimensions() -> None:
    config = render_config(version(batched=False))
    assert "max_batch_size: 0" in config
    assert "dims: [ -1, 64 ]" in config


def test_text_is_a_string_in_tritons_words_and_names_are_quoted() -> None:
    made = version()
    made.signature["inputs"] = [{"name": 'a "b"', "datatype": "BYTES", "shape": [-1, 1]}]
    assert r'name: "a \"b\"" data_type: TYPE_STRING' in render_config(made)


def test_a_version_is_placed_whole_and_replaced_whole(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact.onnx"
    artifact.write_bytes(b"onnx")
    place = cluster(tmp_path / "repository")
    for _ in range(2):
        place_version(version(str(artifact)), place)
    files = sorted(p.name for p in (tmp_path / "repository").rglob("*") if p.is_file())
    assert files == ["config.pbtxt", "model.onnx", "model.py"]
    assert not list(tmp_path.glob(".repository*"))


def test_a_lost_artifact_leaves_nothing_half_placed(tmp_path: Path) -> None:
    place = cluster(tmp_path / "repository")
    with pytest.raises(Unavailable, match="cannot be written"):
        place_version(version(str(tmp_path / "gone.onnx")), place)
    assert not list((tmp_path / "repository").iterdir())
    assert not list(tmp_path.glob(".repository*"))


def test_placing_leaves_alone_what_another_worker_is_building(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact.onnx"
    artifact.write_bytes(b"onnx")
    other = tmp_path / ".repository.staging.other"
    other.mkdir()
    place_version(version(str(artifact)), cluster(tmp_path / "repository"))
    assert other.exists()


def test_removing_what_is_not_there_is_harmless(tmp_path: Path) -> None:
    remove_version(version(), cluster(tmp_path))
