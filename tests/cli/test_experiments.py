"""The requests of `interlock experiment` and its exit codes."""

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

Requests = list[tuple[str, str, Any]]
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
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any]], Requests]:
    """Respond with each of the supplied answers in turn; repeat the last one."""
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    monkeypatch.setattr(experiments, "POLL_S", 0)

    def install(answers: list[Any]) -> Requests:
        requests: Requests = []

        def answer(request: httpx.Request) -> httpx.Response:
            sent = json.loads(request.content) if request.content else None
            requests.append((request.method, request.url.path.removeprefix("/api/v1/"), sent))
            body = answers.pop(0) if len(answers) > 1 else answers[0]
            content = {"text": body} if isinstance(body, str) else {"json": body}
            return httpx.Response(200, **content)

        transport = httpx.MockTransport(answer)
        monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
        return requests

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
    serve: Callable[[list[Any]], Requests], answer: dict[str, Any], code: int, words: list[str]
) -> None:
    serve([answer])
    assert cli.main([*words, "first"]) == code


def test_it_waits_until_it_is_significant(serve: Callable[[list[Any]], Requests]) -> None:
    requests = serve([results(), results(), results(winner="strong")])

    assert cli.main(["results", "first", "--wait"]) == 0

    assert len(requests) == 3


def test_it_waits_for_the_final_result_of_a_stopped_one(
    serve: Callable[[list[Any]], Requests],
) -> None:
    stopped = results(state="completed", conclusion="stopped")
    serve([stopped, results(state="completed", conclusion="stopped", phase="final")])

    assert cli.main(["results", "first", "--wait"]) == 1


def test_a_timeout_exits_4(serve: Callable[[list[Any]], Requests]) -> None:
    serve([results()])
    assert cli.main(["results", "first", "--wait", "--timeout", "0"]) == 4


def test_results_are_printed_as_a_table_json_or_csv(
    serve: Callable[[list[Any]], Requests], capsys: pytest.CaptureFixture[str]
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
    ("judged", "outcome"),
    [
        ({"state": "not-worse"}, "within the margin"),
        ({"state": "undecided", "deteriorated": True}, "undecided, but proven worse"),
        ({"state": "worse", "deteriorated": False}, "beyond the margin"),
    ],
)
def test_a_guardrail_is_compared_with_its_margin(
    serve: Callable[[list[Any]], Requests],
    capsys: pytest.CaptureFixture[str],
    judged: dict[str, Any],
    outcome: str,
) -> None:
    guardrail = GUARDED | {"comparisons": [{"arm": "strong", "non_inferiority": judged}]}
    serve([results(metrics=[METRIC, guardrail])])

    cli.main(["experiment", "results", "first"])

    assert capsys.readouterr().out.rstrip().endswith(outcome)


@pytest.mark.parametrize("move", ["start", "pause", "resume", "stop", "abandon"])
def test_a_move_sends_its_reason(serve: Callable[[list[Any]], Requests], move: str) -> None:
    requests = serve([SHOWN])
    assert cli.main(["experiment", move, "first", "--reason", "why not"]) == 0
    assert requests == [("POST", f"experiments/first/{move}/", {"reason": "why not"})]


def test_events_are_listed(
    serve: Callable[[list[Any]], Requests], capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"at": "now", "from_state": "draft", "to_state": "preparing", "actor": "anna",
             "reason": "at last", "evidence": {}}  # fmt: skip
    requests = serve([{"results": [event], "next": None}])

    assert cli.main(["experiment", "events", "first"]) == 0

    assert requests[0][:2] == ("GET", "experiments/first/events/")
    assert "anna" in capsys.readouterr().out


def test_ship_sends_its_options_and_prints_the_rollout(
    serve: Callable[[list[Any]], Requests], capsys: pytest.CaptureFixture[str]
) -> None:
    requests = serve([SHOWN])
    words = ["--variant", "strong", "--force", "--reason", "we know", "--override", "freeze"]

    assert cli.main(["experiment", "ship", "first", *words]) == 0

    assert requests[0][2] == {
        "variant": "strong",
        "plan": None,
        "force": True,
        "reason": "we know",
        "overrides": ["freeze"],
    }
    assert "rollout r1" in capsys.readouterr().out


@pytest.mark.parametrize(("phase", "code"), [("succeeded", 0), ("rolled_back", 1)])
def test_ship_waits_for_the_rollouts_verdict(
    serve: Callable[[list[Any]], Requests],
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    code: int,
) -> None:
    monkeypatch.setattr(waiting, "POLL_S", 0)
    rollout = {"id": "r1", "model": "digits", "target": 2, "weight_bp": 500, "revision": 3}
    live = {**rollout, "phase": "baking", "is_live": True, "reason": "so far"}
    requests = serve([SHOWN, live, {**live, "phase": phase, "is_live": False, "reason": "because"}])

    assert cli.main(["experiment", "ship", "first", "--wait"]) == code

    assert [path for _, path, _ in requests[1:]] == ["rollouts/r1/"] * 2


def test_weights_are_parsed_and_invalid_ones_send_no_request(
    serve: Callable[[list[Any]], Requests],
) -> None:
    requests = serve([SHOWN])

    assert cli.main(["experiment", "weights", "first", "weak=9000", "strong=1000"]) == 0
    assert cli.main(["experiment", "weights", "first", "weak=a"]) == 2
    assert cli.main(["experiment", "weights", "first", "weak=1", "weak=2"]) == 2

    body = {"weights_bp": {"weak": 9_000, "strong": 1_000}, "reason": ""}
    assert requests == [("POST", "experiments/first/weights/", body)]


@pytest.mark.parametrize(
    "text", ["name: first\nvariants: []\n", '{"name": "first", "variants": []}']
)
def test_a_draft_is_created_from_yaml_or_json(
    serve: Callable[[list[Any]], Requests], tmp_path: Path, text: str
) -> None:
    requests = serve([SHOWN])
    file = tmp_path / "draft"
    file.write_text(text)

    assert cli.main(["experiment", "create", str(file)]) == 0
    assert cli.main(["experiment", "edit", "first", str(file)]) == 0

    body = {"name": "first", "variants": []}
    assert requests == [("POST", "experiments/", body), ("PATCH", "experiments/first/", body)]


@pytest.mark.parametrize("text", ["- 1", "a: [", ""])
def test_a_file_without_a_mapping_is_refused(
    serve: Callable[[list[Any]], Requests], tmp_path: Path, text: str
) -> None:
    requests = serve([SHOWN])
    file = tmp_path / "draft"
    file.write_text(text)

    assert cli.main(["experiment", "create", str(file)]) == 2
    assert cli.main(["metric", "create", str(file)]) == 2
    assert requests == []


PLAN: dict[str, Any] = {
    "metric": "accuracy",
    "power": 0.8,
    "reason": "",
    "traffic": {"summary": "1,000 different units in the last 24 hours"},
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


def test_a_plan_is_printed_and_its_size_applied(
    serve: Callable[[list[Any]], Requests], capsys: pytest.CaptureFixture[str]
) -> None:
    requests = serve([PLAN, SHOWN])

    assert cli.main(["experiment", "power", "first", "--relative", "20", "--apply"]) == 0

    assert requests[1] == ("PATCH", "experiments/first/", {"planned_units": 9_300})
    out = capsys.readouterr().out
    for words in ("control of past", "+0.02", "9300", "9.31", "latency", "planned with 9,300"):
        assert words in out


def test_a_draft_without_a_baseline_has_no_size_and_exits_1(
    serve: Callable[[list[Any]], Requests], capsys: pytest.CaptureFixture[str]
) -> None:
    requests = serve([{**PLAN, "reason": "give its rate", "sizes": []}])

    assert cli.main(["experiment", "power", "first", "--apply"]) == 1

    assert len(requests) == 1
    assert "give its rate" in capsys.readouterr().out


def test_results_print_the_ignored_outcomes(
    serve: Callable[[list[Any]], Requests], capsys: pytest.CaptureFixture[str]
) -> None:
    fine = {"before": 0, "before_mean_s": None, "after_window": 0, "unknown_units": 0}
    late = fine | {"in_time": 3, "before": 600, "before_mean_s": 57, "unknown_units": 2}
    counts = {"metrics": {"bought": late, "fine": fine | {"in_time": 9}}}
    serve([results(attribution=counts)])

    cli.main(["results", "first"])

    out = capsys.readouterr().out
    assert "bought: 3 outcomes count; these do not: 600 before their unit's exposure (by 57" in out
    assert "2 of unknown units" in out
    assert "fine:" not in out


def test_phases_are_printed_if_there_are_several(
    serve: Callable[[list[Any]], Requests], capsys: pytest.CaptureFixture[str]
) -> None:
    phase = {"at": "2026-03-01T12:00:00+00:00", "weights_bp": {"a": 9_000}, "units": {"a": 1_234}}
    serve([results(phases=[phase])])
    cli.main(["results", "first"])
    assert "The weights changed" not in capsys.readouterr().out
    serve([results(phases=[phase, phase | {"weights_bp": {"a": 5_000}, "units": {"a": 7}}])])
    cli.main(["results", "first"])

    out = capsys.readouterr().out

    assert "The weights changed" in out
    assert "2026-03-01T12:00:00+00:00  90 %, 1,234 units" in out
    assert "50 %, 7 units" in out
