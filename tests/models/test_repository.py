"""Triton's model repository: atomic placement and correct configuration."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from apps.lib.errors import Unavailable
from apps.models.artifacts import DATA_FILE
from apps.models.models import ModelVersion, RegisteredModel, ServingCluster
from apps.models.repository import (
    RECORD_VALID_S,
    WITHOUT_ONNXRUNTIME,
    choose_backend,
    falls_back_to_python,
    is_placed,
    lacks_backend,
    place_version,
    remove_version,
    render_config,
)
from tests.models.onnx_zoo import KINDS, save
from tests.rollouts.factories import make_signature

NO_BACKEND = "unable to find backend library for backend 'onnxruntime', try"


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


def test_text_is_a_string_for_triton_and_names_are_quoted() -> None:
    row = version()
    row.signature["inputs"] = [{"name": 'a "b"', "datatype": "BYTES", "shape": [-1, 1]}]
    assert r'name: "a \"b\"" data_type: TYPE_STRING' in render_config(row)


def test_a_version_is_placed_whole_and_replaced_whole(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact.onnx"
    artifact.write_bytes(b"onnx")
    place = cluster(tmp_path / "repository")
    for _ in range(2):
        place_version(version(str(artifact)), place)
    files = sorted(p.name for p in (tmp_path / "repository").rglob("*") if p.is_file())
    assert files == ["config.pbtxt", "model.onnx", "model.py"]
    assert not list((tmp_path / "repository").glob(".*"))


def test_a_lost_artifact_leaves_nothing_half_placed(tmp_path: Path) -> None:
    place = cluster(tmp_path / "repository")
    with pytest.raises(Unavailable, match="cannot be written"):
        place_version(version(str(tmp_path / "gone.onnx")), place)
    assert not list((tmp_path / "repository").iterdir())


def test_placing_does_not_touch_the_staging_of_another_worker(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact.onnx"
    artifact.write_bytes(b"onnx")
    repository = tmp_path / "repository"
    fresh, old = repository / ".staging.fresh", repository / ".staging.old"
    for staging in (fresh, old):
        staging.mkdir(parents=True)
    os.utime(old, (0, 0))
    place_version(version(str(artifact)), cluster(repository))
    assert fresh.exists()
    # Leftovers of a crash are deleted.
    assert not old.exists()


def test_removing_a_missing_version_is_harmless(tmp_path: Path) -> None:
    remove_version(version(), cluster(tmp_path))


def test_a_separate_file_of_weights_is_placed_as_well(tmp_path: Path) -> None:
    artifact = tmp_path / "model.onnx"
    artifact.write_bytes(b"onnx")
    (tmp_path / DATA_FILE).write_bytes(b"weights")
    place_version(version(str(artifact)), cluster(tmp_path / "repository"))
    assert (tmp_path / "repository/digits.4/4" / DATA_FILE).read_bytes() == b"weights"


def test_a_tensor_with_only_a_batch_dimension_is_one_column(tmp_path: Path) -> None:
    row = version(str(save(KINDS["label"], tmp_path)))
    row.signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "y", "datatype": "INT64", "shape": [-1, 1]},
            {"name": "other", "datatype": "INT64", "shape": [-1, 1]},
        ],
    }
    config = render_config(row)
    assert 'name: "y" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] } }' in config
    assert 'name: "other" data_type: TYPE_INT64 dims: [ 1 ] }' in config


def test_triton_merges_batches_without_delay() -> None:
    config = render_config(version())
    assert "dynamic_batching { max_queue_delay_microseconds: 0 " in config
    assert "preferred_batch_size" not in config
    assert "timeout_action: REJECT" in config
    assert "allow_timeout_override: true" in config


def test_triton_warms_up_with_zeros_unless_the_version_has_requests_of_its_own() -> None:
    row = version()
    assert (
        'model_warmup [ { name: "zeros" batch_size: 1 inputs { key: "pixels" value '
        "{ data_type: TYPE_FP32 dims: [ 64 ] zero_data: true } } } ]"
    ) in render_config(row)
    row.warmup = [[]]
    assert "model_warmup" not in render_config(row)


def test_the_number_of_instances_is_a_setting(settings: Any) -> None:
    assert "instance_group [ { count: 1 kind: KIND_CPU } ]" in render_config(version())
    settings.TRITON_INSTANCES = 3
    assert "instance_group [ { count: 3 kind: KIND_AUTO } ]" in render_config(
        version(), "onnxruntime"
    )


def test_a_changed_configuration_is_not_placed_yet(tmp_path: Path, settings: Any) -> None:
    artifact = tmp_path / "artifact.onnx"
    artifact.write_bytes(b"onnx")
    row, place = version(str(artifact)), cluster(tmp_path / "repository")
    assert not is_placed(row, place)
    place_version(row, place)
    assert is_placed(row, place)
    row.model.max_batch_size = 16
    assert not is_placed(row, place)
    row.model.max_batch_size = 8
    settings.TRITON_BACKEND = "onnxruntime"
    assert not is_placed(row, place)


def test_a_missing_backend_is_recorded_for_a_day(tmp_path: Path, settings: Any) -> None:
    place = cluster(tmp_path)
    assert choose_backend(place) == "onnxruntime"
    assert falls_back_to_python(version(), place, NO_BACKEND)
    assert choose_backend(place) == "python"
    long_ago = time.time() - RECORD_VALID_S - 1
    os.utime(tmp_path / WITHOUT_ONNXRUNTIME, (long_ago, long_ago))
    assert choose_backend(place) == "onnxruntime"
    settings.TRITON_BACKEND = "onnxruntime"
    assert not falls_back_to_python(version(), place, NO_BACKEND)
    settings.TRITON_BACKEND = "python"
    assert choose_backend(place) == "python"


def test_an_older_runtime_makes_the_wrapper_serve_that_version(tmp_path: Path) -> None:
    place = cluster(tmp_path)
    assert falls_back_to_python(version(), place, "Unsupported model IR version: 11, max 10")
    assert not falls_back_to_python(version(), place, "out of memory")
    assert choose_backend(place) == "onnxruntime"


def test_another_refusal_is_not_about_the_backend() -> None:
    assert lacks_backend(NO_BACKEND)
    assert not lacks_backend("unable to find backend library for backend 'tensorrt', try")
    assert not lacks_backend("failed to load 'onnxruntime' model")
