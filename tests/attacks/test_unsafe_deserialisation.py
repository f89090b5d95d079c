"""External data is never turned into objects that run code."""

from __future__ import annotations

import ast
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.exceptions import ContentDisallowed
from kombu.serialization import loads

from apps.lib.errors import Invalid
from apps.models.artifacts import read_mlflow_model
from controlplane.celery import app

ROOT = Path(__file__).parents[2]
PRODUCT = ("apps", "cli", "contract", "controlplane", "dataplane", "embedded")
# Modules and calls that create objects or run code from bytes.
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "torch"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("os", "system")}


def trees() -> Iterator[tuple[str, ast.AST]]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *(f"{name}/*.py" for name in PRODUCT)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.split():
        if (ROOT / name).exists():
            yield name, ast.parse((ROOT / name).read_text())


def faults_of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (each.name for each in names if each.name.split(".")[0] in MODULES)
        case ast.ImportFrom(module=str(module)):
            yield from [module] if module.split(".")[0] in MODULES else []
        case ast.Call(func=ast.Name(id=name)) if name in CALLS:
            yield name
        case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in ATTRIBUTES:
            yield f"{module}.{name}"
        case ast.keyword(arg="shell" | "allow_pickle", value=ast.Constant(value=True)):
            yield str(node.arg)


def test_the_product_has_no_unsafe_calls() -> None:
    faults = [
        f"{name}: {fault}"
        for name, tree in trees()
        for node in ast.walk(tree)
        for fault in faults_of(node)
    ]
    assert not faults


@pytest.mark.parametrize("source", ["import pickle", "eval(x)", "yaml.load(x)", "run(shell=True)"])
def test_the_search_finds_unsafe_calls(source: str) -> None:
    assert [fault for node in ast.walk(ast.parse(source)) for fault in faults_of(node)]


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("bomb"),)  # type: ignore[return-value]


def test_a_pickled_task_is_refused_by_the_worker() -> None:
    assert list(app.conf.accept_content) == ["json"]
    accept = {"application/json"}
    with pytest.raises(ContentDisallowed):
        loads(pickle.dumps(Bomb()), "application/x-python-serialize", "binary", accept)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch bomb']",
        "flavors: !!python/object/new:os.system ['touch bomb']",
        "flavors:\n  onnx: !!python/name:os.system\n",
    ],
)
def test_an_mlmodel_file_creates_no_objects(tmp_path: Path, text: str) -> None:
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(Invalid, match="cannot be read"):
        read_mlflow_model(tmp_path)


def test_a_pickled_model_is_refused_by_its_flavour_and_never_read(tmp_path: Path) -> None:
    flavours = "flavors:\n  python_function: {loader_module: mlflow.sklearn}\n  sklearn: {}\n"
    (tmp_path / "MLmodel").write_text(flavours)
    model = tmp_path / "model.pkl"
    model.write_bytes(pickle.dumps(Bomb()))
    model.chmod(0)
    with pytest.raises(Invalid, match="no ONNX flavour"):
        read_mlflow_model(tmp_path)
