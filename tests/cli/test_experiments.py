"""What the command line asks of the API of experiments, and the verdict as an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli import experiments, waiting
from cli import main as cli
from cli.client import Client

Asked = list[tuple[str, str, Any]]
SHOWN = {
    "name": "first",
    "state": "running",
    "conclusion": "",
    "reason": "because",
    "rollout": "r1",
}
METRIC: dict[str, Any] = {
    "name": "accuracy",
    "role": "primary",
    "arms": [{"name": "strong", "n": 9, "mean": 0.5}],
    "comparisons": [{"arm": "strong", "outcome": "undecided", "difference": 0.1}],
}
WORSE = METRIC | {"comparisons": [{"arm": "strong", "outcome": "worse"}]}
GUARDED = METRIC | {
    "role": "guardrail",
    "comparisons": [
        {"arm": "strong", "outcome": "undecided", "non_inferiority": {"state": "worse"}}
    ],
}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any]], Asked]:
    """Answer with one after the other of what is given, the last one for ever."""
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    monkeypatch.setattr(experiments, "POLL_S", 0)

    def install(answers: list[Any]) -> Asked:
        asked: Asked = []

        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content) if request.content else None
            asked.append((request.method, request.url.path.removeprefix("/api/v1/"), body))
            told = answers.pop(0) if len(answers) > 1 else answers[0]
            return httpx.Response(
                200, **({"text": told} if isinstance(told, str) else {"json": told})
            )

        transport = httpx.MockTransport(answer)
        monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
        return asked

    return install


def results(**fields: Any) -> dict[str, Any]:
    result = {"metrics": [METRIC], "winner": None, "verdict": "so far", "phase": "running"}
    state = {"state": fields.pop("state", "running"), "conclusion": fields.pop("conclusion", "")}
    return {"name": "first", **state, "result": result | fields}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (results(winner="strong"), 0),
        (results(), 1),
        (results(metrics=[WORSE]), 5),
        (results(metrics=[METRIC, GUARDED], winner="strong"), 5),
        (results(winner="strong", sample_ratio={"state": "srm"}), 6),
        (results(conclusion="abandoned", state="completed"), 6),
        (results(state="failed"), 6),
        ({"name": "first", "state": "running", "conclusion": "", "result": {}}, 6),
    ],
)
@pytest.mark.parametrize("words", [["results"], ["experiment", "results"]])
def test_the_verdict_is_the_exit_code(
    serve: Callable[[list[Any]], Asked], answer: dict[str, Any], code: int, words: list[str]
) -> None:
    serve([answer])
    assert cli.main([*words, "first"]) == code


def test_it_waits_until_it_is_significant(serve: Callable[[list[Any]], Asked]) -> None:
    asked = serve([results(), results(), results(winner="strong")])

    assert cli.main(["results", "first", "--wait"]) == 0

    assert len(asked) == 3


def test_it_waits_for_the_final_result_of_a_stopped_one(
    serve: Callable[[list[Any]], Asked],
) -> None:
    stopped = results(state="completed", conclusion="stopped")
    serve([stopped, results(state="completed", conclusion="stopped", phase="final")])

    assert cli.main(["results", "first", "--wait"]) == 1


def test_a_timeout_exits_4(serve: Callable[[list[Any]], Asked]) -> None:
    serve([results()])
    assert cli.main(["results", "first", "--wait", "--timeout", "0"]) == 4


def test_results_are_printed_as_a_table_json_or_csv(
    serve: Callable[[list[Any]], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    serve([results()])
    cli.main(["results", "first"])
    assert "so far\nmetric" in capsys.readouterr().out
    cli.main(["--json", "results", "first"])
    before = json.loads(capsys.readouterr().out)
    cli.main(["results", "first", "--json"])
    assert json.loads(capsys.readouterr().out) == before == results()
    serve([results(), "metric,arm\n"])
    cli.main(["results", "first", "--csv"])
    assert capsys.readouterr().out == "metric,arm\n"


@pytest.mark.parametrize(
    ("judged", "told"),
    [
        ({"state": "not-worse"}, "within the margin"),
        ({"state": "undecided", "deteriorated": True}, "undecided, but proven worse"),
        ({"state": "worse", "deteriorated": False}, "beyond the margin"),
    ],
)
def test_a_guardrail_is_told_by_its_margin(
    serve: Callable[[list[Any]], Asked],
    capsys: pytest.CaptureFixture[str],
    judged: dict[str, Any],
    told: str,
) -> None:
    guardrail = GUARDED | {"comparisons": [{"arm": "strong", "non_inferiority": judged}]}
    serve([results(metrics=[METRIC, guardrail])])

    cli.main(["experiment", "results", "first"])

    assert capsys.readouterr().out.rstrip().endswith(told)


@pytest.mark.parametrize("move", ["start", "pause", "resume", "stop", "abandon"])
def test_a_move_is_asked_with_its_reason(serve: Callable[[list[Any]], Asked], move: str) -> None:
    asked = serve([SHOWN])
    assert cli.main(["experiment", move, "first", "--reason", "why not"]) == 0
    assert asked == [("POST", f"experiments/first/{move}/", {"reason": "why not"})]


def test_events_are_listed(
    serve: Callable[[list[Any]], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"at": "now", "from_state": "draft", "to_state": "preparing", "actor": "anna",
             "reason": "at last", "evidence": {}}  # fmt: skip
    asked = serve([{"results": [event], "next": None}])

    assert cli.main(["experiment", "events", "first"]) == 0

    assert asked[0][:2] == ("GET", "experiments/first/events/")
    assert "anna" in capsys.readouterr().out


def test_ship_says_what_is_meant_and_tells_the_rollout(
    serve: Callable[[list[Any]], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = serve([SHOWN])
    words = ["--variant", "strong", "--force", "--reason", "we know", "--override", "freeze"]

    assert cli.main(["experiment", "ship", "first", *words]) == 0

    assert asked[0][2] == {
        "variant": "strong",
        "plan": None,
        "force": True,
        "reason": "we know",
        "overrides": ["freeze"],
    }
    assert "rollout r1" in capsys.readouterr().out


@pytest.mark.parametrize(("phase", "code"), [("succeeded", 0), ("rolled_back", 1)])
def test_ship_waits_for_the_rollouts_verdict(
    serve: Callable[[list[Any]], Asked],
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    code: int,
) -> None:
    monkeypatch.setattr(waiting, "POLL_S", 0)
    rollout = {"id": "r1", "model": "digits", "target": 2, "weight_bp": 500, "revision": 3}
    live = {**rollout, "phase": "baking", "is_live": True, "reason": "so far"}
    asked = serve([SHOWN, live, {**live, "phase": phase, "is_live": False, "reason": "because"}])

    assert cli.main(["experiment", "ship", "first", "--wait"]) == code

    assert [path for _, path, _ in asked[1:]] == ["rollouts/r1/"] * 2


def test_weights_are_read_and_bad_ones_refused_before_anybody_is_asked(
    serve: Callable[[list[Any]], Asked],
) -> None:
    asked = serve([SHOWN])

    assert cli.main(["experiment", "weights", "first", "weak=9000", "strong=1000"]) == 0
    assert cli.main(["experiment", "weights", "first", "weak=a"]) == 2
    assert cli.main(["experiment", "weights", "first", "weak=1", "weak=2"]) == 2

    body = {"weights_bp": {"weak": 9_000, "strong": 1_000}, "reason": ""}
    assert asked == [("POST", "experiments/first/weights/", body)]


@pytest.mark.parametrize(
    "text", ["name: first\nvariants: []\n", '{"name": "first", "variants": []}']
)
def test_a_draft_is_made_of_yaml_or_json(
    serve: Callable[[list[Any]], Asked], tmp_path: Path, text: str
) -> None:
    asked = serve([SHOWN])
    file = tmp_path / "draft"
    file.write_text(text)

    assert cli.main(["experiment", "create", str(file)]) == 0
    assert cli.main(["experiment", "edit", "first", str(file)]) == 0

    body = {"name": "first", "variants": []}
    assert asked == [("POST", "experiments/", body), ("PATCH", "experiments/first/", body)]


@pytest.mark.parametrize("text", ["- 1", "a: [", ""])
def test_a_file_that_is_no_object_is_refused(
    serve: Callable[[list[Any]], Asked], tmp_path: Path, text: str
) -> None:
    asked = serve([SHOWN])
    file = tmp_path / "draft"
    file.write_text(text)

    assert cli.main(["experiment", "create", str(file)]) == 2
    assert cli.main(["metric", "create", str(file)]) == 2
    assert asked == []


PLAN: dict[str, Any] = {
    "metric": "accuracy",
    "power": 0.8,
    "reason": "",
    "traffic": {"told": "1,000 different units in the last 24 hours"},
    "baseline": {"mean": 0.1, "sd": None, "source": "control of past"},
    "effect": 0.02,
    "effect_relative": 0.2,
    "sizes": [
        {"reading": "fixed-horizon", "units": 9_300, "control_units": 4_650, "days": 9.31},
        {"reading": "sequential", "units": 14_400, "control_units": 7_200, "days": None},
    ],
    "curve": [{"days": 1, "units": 1_000, "fixed": 0.06, "sequential": None}],
    "guardrails": [{"metric": "latency", "margin": 1.0, "units": 50, "days": 0.05, "reason": ""}],
}


def test_a_plan_is_told_and_its_size_taken(
    serve: Callable[[list[Any]], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = serve([PLAN, SHOWN])

    assert cli.main(["experiment", "power", "first", "--relative", "20", "--apply"]) == 0

    assert asked[1] == ("PATCH", "experiments/first/", {"planned_units": 9_300})
    told = capsys.readouterr().out
    for words in ("control of past", "+0.02", "9300", "9.31", "latency", "planned with 9,300"):
        assert words in told


def test_a_draft_without_a_past_has_no_size_and_the_exit_code_says_so(
    serve: Callable[[list[Any]], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = serve([{**PLAN, "reason": "give its rate", "sizes": []}])

    assert cli.main(["experiment", "power", "first", "--apply"]) == 1

    assert len(asked) == 1
    assert "give its rate" in capsys.readouterr().out


def test_phases_of_weights_are_told_where_there_are_several(
    serve: Callable[[list[Any]], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    phase = {"at": "2026-03-01T12:00:00+00:00", "weights_bp": {"a": 9_000}, "units": {"a": 1_234}}
    serve([results(phases=[phase])])
    cli.main(["results", "first"])
    assert "Weights changed" not in capsys.readouterr().out
    serve([results(phases=[phase, phase | {"weights_bp": {"a": 5_000}, "units": {"a": 7}}])])
    cli.main(["results", "first"])

    out = capsys.readouterr().out

    assert "Weights changed" in out
    assert "2026-03-01T12:00:00+00:00  90 %, 1,234 units" in out
    assert "50 %, 7 units" in out
