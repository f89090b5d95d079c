"""Runs trial requests: finds a valid input, output shapes, cost, and whether rows are independent.

Requests of several users may share a batch only if each row's output is the same as alone. The
shapes in a file do not show this: a sequence, or a normalisation over all rows, looks like a batch.
So the model computes three rows together and one by one, and the outputs must agree.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from time import monotonic
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apps.models.warmup import WARMUP_BYTES_MAX

Array = NDArray[Any]
Arrays = dict[str, Array]

# The time limit of one trial request; a slower model is refused (INTERLOCK_TRIAL_S).
TRIAL_S = 20.0
# The time limit of all trials; after it no trial starts, and declared values apply.
TRIALS_S = 60.0
# How long to wait for a run to end after `terminate`; then it is abandoned.
TERMINATE_S = 3.0
# Sizes to try for free dimensions: a kernel, a patch or the usual image may have to fit.
SIZES = (1, 2, 4, 8, 16, 32, 64, 224)
ELEMENTS_MAX = 1 << 24
ROWS = 3
# One row is timed, and TIMED_ROWS at once if that should take at most TIMED_S. The quickest of
# TIMED_RUNS counts: other load on the machine only adds to it.
TIMED_ROWS, TIMED_RUNS, TIMED_S = 32, 3, 5.0
# Relative to the largest value: differences from quantising rows together are smaller than those of
# dependent rows.
TOLERANCE = 0.02

NUMPY = {
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
    "BYTES": np.object_,
}


class Session(Protocol):
    """The part of onnxruntime's InferenceSession that is used."""

    def get_inputs(self) -> Sequence[Any]: ...
    def get_outputs(self) -> Sequence[Any]: ...
    def run(self, names: Any, inputs: Any, options: Any = None) -> list[Any]: ...


@dataclass(frozen=True)
class Tensor:
    """A declared input or output. A dimension is a size, a symbol, or None if free and unnamed.

    `dims` is None if the file does not declare the rank.
    """

    name: str
    datatype: str
    dims: list[int | str | None] | None

    @property
    def shape(self) -> list[int]:
        """The dimensions; free ones are −1."""
        return [dim if isinstance(dim, int) and dim > 0 else -1 for dim in self.dims or []]


@dataclass(frozen=True)
class Trial:
    """`output_shapes` are the observed ones; `warmup` is a valid request if zeros of the smallest
    shape are not one; `took_ms` is the duration of requests, by the number of rows."""

    batched: bool
    output_shapes: dict[str, list[int]] = field(default_factory=dict)
    warmup: list[list[dict[str, Any]]] = field(default_factory=list)
    took_ms: dict[str, float] = field(default_factory=dict)


def try_out(
    session: Session, inputs: list[Tensor], outputs: list[Tensor], trial_s: float = TRIAL_S
) -> Trial:
    """Run the trials; declared values apply to all that they do not determine.

    Raises MemoryError if memory does not suffice for the smallest request, Unfinished if a request
    exceeds its time limit.
    """
    may_batch = _may_batch(inputs)
    runs = _Runs(session, [tensor.name for tensor in outputs], trial_s)
    # Zeros are the default warm-up request, and random numbers distinguish rows.
    zeros, outputs_of_zeros = _first_valid(runs, _candidates(inputs, may_batch, random=False))
    rows, varied = _first_valid(runs, _candidates(inputs, may_batch, random=True))
    arrays = outputs_of_zeros or varied
    if arrays is None and runs.out_of_memory:
        raise MemoryError
    if arrays is None:
        return Trial(may_batch and _may_batch([*inputs, *outputs]))
    batched = may_batch and _rows_are_independent(runs, inputs, rows or zeros)
    if batched is None:
        batched = _may_batch([*inputs, *outputs])
    shapes = {
        t.name: _output_shape(t, array, batched) for t, array in zip(outputs, arrays, strict=True)
    }
    smallest = zeros is not None and zeros.size == SIZES[0]
    known = zeros if zeros is not None else rows
    warmup = [] if smallest or known is None else _request(known.arrays, inputs, batched)
    took_ms = {} if known is None else _timed(runs, inputs, known, batched)
    return Trial(batched, shapes, warmup, took_ms)


def _may_batch(tensors: list[Tensor]) -> bool:
    """Return whether the first dimensions can be the batch: free, equal, and not used elsewhere."""
    if any(not tensor.shape or tensor.shape[0] != -1 for tensor in tensors):
        return False
    first = {tensor.dims[0] for tensor in tensors if tensor.dims} - {None, ""}
    later = {dim for tensor in tensors for dim in (tensor.dims or [])[1:]}
    return len(first) <= 1 and not first & later


# --- inputs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    arrays: Arrays
    size: int
    random: bool


def _candidates(inputs: list[Tensor], may_batch: bool, *, random: bool) -> Iterator[_Candidate]:
    free = any(-1 in tensor.shape[may_batch:] for tensor in inputs)
    for size in SIZES if free else SIZES[:1]:
        if _elements(inputs, size) <= ELEMENTS_MAX:
            rows = 1 if may_batch else size
            yield _Candidate(_arrays(inputs, rows, size, random=random), size, random)


def _elements(inputs: list[Tensor], size: int) -> int:
    return max(prod(size if dim == -1 else dim for dim in tensor.shape) for tensor in inputs)


def _arrays(inputs: list[Tensor], rows: int, size: int, *, random: bool) -> Arrays:
    generator = np.random.default_rng(7)
    arrays = {}
    for tensor in inputs:
        shape = [size if dim == -1 else dim for dim in tensor.shape]
        if tensor.shape and tensor.shape[0] == -1:
            shape[0] = rows
        # Small integers and halves: valid as indices, and short as JSON.
        numbers = generator.integers(0, 2 if _is_integer(tensor) else 5, shape) if random else None
        arrays[tensor.name] = _as_type(tensor.datatype, shape, numbers)
    return arrays


def _is_integer(tensor: Tensor) -> bool:
    return not tensor.datatype.startswith("FP")


def _as_type(datatype: str, shape: list[int], numbers: Array | None) -> Array:
    dtype = NUMPY[datatype]
    if datatype == "BYTES":
        words = np.array(["a", "b"] if numbers is not None else ["", ""], dtype=object)
        return np.asarray(words[np.zeros(shape, int) if numbers is None else numbers], dtype=object)
    if numbers is None:
        return np.zeros(shape, dtype)
    return np.asarray(numbers / 2 if datatype.startswith("FP") else numbers).astype(dtype)


def _request(arrays: Arrays, inputs: list[Tensor], batched: bool) -> list[list[dict[str, Any]]]:
    """Return `arrays` as a list of one warm-up request; empty if it is too large for the table."""
    request = []
    for tensor in inputs:
        array = arrays[tensor.name]
        shape = list(array.shape) or [1]
        request.append(
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": [*shape, 1] if batched and len(shape) == 1 else shape,
                "data": array.ravel().tolist(),
            }
        )
    fits = len(json.dumps([request], separators=(",", ":"))) <= WARMUP_BYTES_MAX
    return [request] if fits else []


# --- runs ----------------------------------------------------------------------------------------


class Unfinished(Exception):
    """A trial exceeded its time limit."""


class _Runs:
    """Runs the model within the time limits. Raises Unfinished."""

    def __init__(self, session: Session, outputs: list[str], trial_s: float) -> None:
        self._session = session
        self._outputs = outputs
        self._trial_s = trial_s
        self._ends_at = monotonic() + TRIALS_S
        self.out_of_memory = False
        # The duration of the last run.
        self.took_s = 0.0

    @property
    def ended(self) -> bool:
        return monotonic() > self._ends_at

    def __call__(self, arrays: Arrays) -> list[Array] | None:
        """Return the outputs; None if the model fails or the time for trials is over."""
        if self.ended:
            return None
        began_at = monotonic()
        try:
            outputs = self._run(arrays)
            self.took_s = monotonic() - began_at
        except Unfinished:
            raise
        except Exception as error:  # Any error of onnxruntime is a result of the trial.
            self.out_of_memory |= is_out_of_memory(error)
            return None
        return [np.asarray(array) for array in outputs]

    def _run(self, arrays: Arrays) -> list[Any]:
        """Run in a separate thread: a loop in the model may ignore `terminate`."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        result: Future[list[Any]] = Future()

        def run() -> None:
            try:
                result.set_result(self._session.run(self._outputs, arrays, options))
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            return result.result(timeout=self._trial_s)
        except TimeoutError:
            options.terminate = True
        with suppress(Exception):
            result.result(timeout=TERMINATE_S)
        raise Unfinished(f"it did not answer a trial request within {self._trial_s:g} s")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means out of memory; onnxruntime has no exception class for it."""
    text = str(error)
    return isinstance(error, MemoryError) or "bad_alloc" in text or "allocate memory" in text


def _first_valid(
    runs: _Runs, candidates: Iterator[_Candidate]
) -> tuple[_Candidate | None, list[Array] | None]:
    for candidate in candidates:
        outputs = runs(candidate.arrays)
        if outputs is not None:
            return candidate, outputs
    return None, None


def _rows_are_independent(
    runs: _Runs, inputs: list[Tensor], known: _Candidate | None
) -> bool | None:
    """Return whether outputs of rows together and alone agree; None if not determined."""
    if known is None:
        return None
    arrays = _arrays(inputs, ROWS, known.size, random=known.random)
    together, again = runs(arrays), runs(arrays)
    alone = [
        runs({name: array[row : row + 1] for name, array in arrays.items()}) for row in range(ROWS)
    ]
    if runs.ended:
        return None
    if together is None or again is None or any(outputs is None for outputs in alone):
        return False
    for index, whole in enumerate(together):
        parts = [outputs[index] for outputs in alone if outputs is not None]
        if whole.ndim == 0 or any(part.shape != (1, *whole.shape[1:]) for part in parts):
            return False
        # A model with random outputs differs from itself; then only shapes are compared.
        certain = _agree(whole, again[index])
        if len(whole) != ROWS or (certain and not _agree(whole, np.concatenate(parts))):
            return False
    return True


def _timed(runs: _Runs, inputs: list[Tensor], known: _Candidate, batched: bool) -> dict[str, float]:
    """Return the duration of one row, and of many at once, in ms by the number of rows."""
    took_ms: dict[str, float] = {}
    for rows in (1, TIMED_ROWS) if batched else (1,):
        arrays = known.arrays
        if batched:
            if rows * _elements(inputs, known.size) > ELEMENTS_MAX:
                break
            arrays = _arrays(inputs, rows, known.size, random=known.random)
        if took_ms and took_ms["1"] * rows > TIMED_S * 1000:
            break
        took_s = _quickest(runs, arrays)
        if took_s is None:
            break
        took_ms[str(rows)] = round(took_s * 1000, 3)
    return took_ms


def _quickest(runs: _Runs, arrays: Arrays) -> float | None:
    """Return the duration of the quickest run in seconds; None if a run fails."""
    took_s: list[float] = []
    while len(took_s) < TIMED_RUNS and sum(took_s) < TIMED_S:
        try:
            if runs(arrays) is None:
                return None
        except Unfinished:
            # It answered before, so it can be served.
            return None
        took_s.append(runs.took_s)
    return min(took_s)


def _agree(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool((one == other).all())
    one, other = one.astype(np.float64), other.astype(np.float64)
    largest = float(np.max(np.abs(one[np.isfinite(one)]), initial=0.0))
    return np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True)


def _output_shape(tensor: Tensor, array: Array, batched: bool) -> list[int]:
    """Return the declared shape of an output; dimensions that the trial contradicts are free."""
    declared = tensor.shape if tensor.dims is not None else []
    if len(declared) != array.ndim:
        return [-1] * array.ndim
    sizes = zip(declared, array.shape, strict=True)
    shape = [size if size == observed else -1 for size, observed in sizes]
    return [-1, *shape[1:]] if batched else shape
