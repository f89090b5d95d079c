"""Trains five ONNX classifiers of handwritten digits: weak, strong, broken, slow and hanging.

All five have the input `X` FP32 [−1, 64] and the outputs `label` and `probabilities`, so that any
can replace any other. `broken` is `strong` with a table look-up that a bright pixel drives out of
bounds: it passes warm-up, scores well in training, and fails for some users only. `slow` returns
the outputs of `strong` after additional work. `hanging` responds to blank images at once, so that
it passes warm-up, and computes for a second on every image that shows a digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PIXELS = 64
WORK_WIDTH = 1_024
# About 35 ms on one core: clearly more than the plan's latency slack.
WORK_ROUNDS = 240
# The rounds of `hanging`: about 1 s on one core, far more than an impatient user's timeout.
HANG_ROUNDS = 600_000
# An image shows a digit if a pixel is brighter; every image of the data has one of 15 or 16.
BLANK_MOST = 8.0
# The size of the look-up table of `broken`; the brightest pixels are 16.
TABLE_SIZE = 12
FRAGILE_PIXEL = 20


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits, 8 × 8 pixels: one half for training, the other half held out."""

    train_x: Any
    train_y: Any
    held_x: Any
    held_y: Any


@dataclass(frozen=True)
class Classifier:
    """A trained model with its metadata for the registry."""

    kind: str
    onnx: Any
    accuracy: float
    parameters: dict[str, Any]


def load_digits() -> Digits:
    """Load the data with a fixed split."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    x, y = load(return_X_y=True)
    parts = train_test_split(x.astype(np.float32), y, test_size=0.5, random_state=7, stratify=y)
    return Digits(parts[0], parts[2], parts[1], parts[3])


def train_all(digits: Digits) -> list[Classifier]:
    """Train and convert all classifiers, in the order of registration."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.tree import DecisionTreeClassifier

    weak = DecisionTreeClassifier(max_depth=6, random_state=7).fit(digits.train_x, digits.train_y)
    strong = MLPClassifier((64,), max_iter=400, random_state=7)
    strong.fit(digits.train_x / 16.0, digits.train_y)
    scaled = _scaled(strong)
    weak_score = float(weak.score(digits.held_x, digits.held_y))
    score = float(strong.score(digits.held_x / 16.0, digits.held_y))
    shared = {"hidden_layers": "64", "scale": 16}
    return [
        Classifier("weak", _convert(weak), weak_score, {"max_depth": 6}),
        Classifier("strong", scaled, score, shared),
        Classifier("broken", _break(scaled), score, {**shared, "table_size": TABLE_SIZE}),
        Classifier("slow", _slow_down(scaled), score, {**shared, "rounds": WORK_ROUNDS}),
        Classifier("hanging", _hang(scaled), score, {**shared, "rounds": HANG_ROUNDS}),
    ]


def _convert(estimator: Any) -> Any:
    from skl2onnx import to_onnx

    sample = np.zeros((1, PIXELS), np.float32)
    model = to_onnx(estimator, sample, options={"zipmap": False}, target_opset=15)
    for output, name in zip(list(model.graph.output), ("label", "probabilities"), strict=True):
        if output.name != name:
            raise ValueError(f"the converter named an output {output.name!r}, not {name!r}")
    return model


def _scaled(estimator: Any) -> Any:
    """Convert the network and prepend a division by 16, so that its input is raw pixels."""
    model = _convert(estimator)
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["X_scaled" if name == "X" else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.array(16.0, np.float32), "sixteen"))
    graph.node.insert(0, helper.make_node("Div", ["X", "sixteen"], ["X_scaled"]))
    return model


def _append(base: Any, nodes: list[Any], initializers: list[Any], extra: str) -> Any:
    """Return a copy of `base` that also computes `nodes` and adds 0 · `extra` to its result."""
    model = onnx.ModelProto()
    model.CopyFrom(base)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["raw" if n == "probabilities" else n for n in node.output]
        node.input[:] = ["raw" if n == "probabilities" else n for n in node.input]
    zero = numpy_helper.from_array(np.array(0.0, np.float32), "nothing")
    graph.initializer.extend([*initializers, zero])
    graph.node.extend(
        [
            *nodes,
            helper.make_node("Mul", [extra, "nothing"], ["effect"]),
            helper.make_node("Add", ["raw", "effect"], ["probabilities"]),
        ]
    )
    onnx.checker.check_model(model)
    return model


def _break(base: Any) -> Any:
    table = numpy_helper.from_array(np.zeros((TABLE_SIZE, 1), np.float32), "table")
    pixel = numpy_helper.from_array(np.array(FRAGILE_PIXEL, np.int64), "fragile_pixel")
    nodes = [
        helper.make_node("Gather", ["X", "fragile_pixel"], ["brightness"], axis=1),
        helper.make_node("Cast", ["brightness"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["looked_up"], axis=0),
    ]
    return _append(base, nodes, [table, pixel], "looked_up")


def _slow_down(base: Any) -> Any:
    random = np.random.default_rng(7)
    widen = random.normal(0, 0.05, (PIXELS, WORK_WIDTH)).astype(np.float32)
    mix = random.normal(0, 1.0 / np.sqrt(WORK_WIDTH), (WORK_WIDTH, WORK_WIDTH)).astype(np.float32)
    narrow = random.normal(0, 0.05, (WORK_WIDTH, 1)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["X", "widen"], ["work_0"])]
    for i in range(WORK_ROUNDS):
        nodes.append(helper.make_node("MatMul", [f"work_{i}", "mix"], [f"mixed_{i}"]))
        nodes.append(helper.make_node("Tanh", [f"mixed_{i}"], [f"work_{i + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"work_{WORK_ROUNDS}", "narrow"], ["worked"]))
    weights = [
        numpy_helper.from_array(array, name)
        for array, name in ((widen, "widen"), (mix, "mix"), (narrow, "narrow"))
    ]
    return _append(base, nodes, weights, "worked")


def _hang(base: Any) -> Any:
    """Add a loop of small products whose number of rounds depends on the brightest pixel."""
    nodes = [
        helper.make_node("ReduceMax", ["X"], ["brightest"], keepdims=0),
        helper.make_node("Greater", ["brightest", "blank_most"], ["shows_digit"]),
        helper.make_node("Where", ["shows_digit", "rounds", "no_rounds"], ["trips"]),
        helper.make_node("Loop", ["trips", "", "begin"], ["end"], body=_hang_round()),
        helper.make_node("ReduceMean", ["end"], ["worked"], axes=[1]),
    ]
    random = np.random.default_rng(7)
    mix = random.normal(0, 1.0 / np.sqrt(PIXELS), (PIXELS, PIXELS)).astype(np.float32)
    arrays: dict[str, Any] = {
        "mix": mix,
        "begin": np.ones((1, PIXELS), np.float32),
        "blank_most": np.array(BLANK_MOST, np.float32),
        "rounds": np.array(HANG_ROUNDS, np.int64),
        "no_rounds": np.array(0, np.int64),
    }
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return _append(base, nodes, initializers, "worked")


def _hang_round() -> Any:
    """Return the loop's body: one product of a row with `mix` of the outer graph."""
    state = TensorProto.FLOAT, [1, PIXELS]
    nodes = [
        helper.make_node("MatMul", ["state", "mix"], ["mixed_state"]),
        helper.make_node("Tanh", ["mixed_state"], ["next_state"]),
        helper.make_node("Identity", ["condition"], ["next_condition"]),
    ]
    inputs = [
        helper.make_tensor_value_info("round", TensorProto.INT64, []),
        helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", *state),
    ]
    outputs = [
        helper.make_tensor_value_info("next_condition", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next_state", *state),
    ]
    return helper.make_graph(nodes, "hang_round", inputs, outputs)
