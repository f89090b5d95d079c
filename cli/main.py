"""`interlock` controls Interlock from a shell or a CI job; the exit code is the verdict.

Exit codes:
  0  success
  1  the rollout or release was rolled back or failed, the experiment has no significant result,
     or a loop of the control plane has stopped
  2  the request was refused
  3  the control plane is unreachable
  4  `--timeout` expired
  5  a variant or a guardrail of the experiment is worse
  6  the experiment has no verdict: sample ratio mismatch, no data, or abandoned
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cli.client import (
    EXIT_BAD_REQUEST,
    EXIT_OK,
    EXIT_REFUSED_BY_VERDICT,
    EXIT_TIMED_OUT,
    ApiError,
    Client,
)
from cli.experiments import add_experiments
from cli.governance import add_governance
from cli.notifications import add_notifications
from cli.outcomes import add_outcomes
from cli.parsing import add_command
from cli.plans import add_plans
from cli.registry import add_registry
from cli.releases import add_releases
from cli.rollouts import add_rollouts
from cli.serving import add_serving
from cli.show import show_json, show_rows
from cli.tenants import add_keys, add_tenants
from cli.versions import add_versions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    token = os.environ.get("INTERLOCK_TOKEN", "")
    if not token:
        print(
            "interlock: INTERLOCK_TOKEN is not set; create a token in the web UI under Tokens",
            file=sys.stderr,
        )
        return EXIT_BAD_REQUEST
    client = Client(options.url, token)
    try:
        code: int = options.command(client, options)
        sys.stdout.flush()
    except ApiError as error:
        print(f"interlock: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interlock: stopped waiting; the rollout continues", file=sys.stderr)
        return EXIT_TIMED_OUT
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe. Python must not report it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interlock",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("INTERLOCK_URL", "http://127.0.0.1:8000"),
        help="URL of the control plane (default: INTERLOCK_URL, or %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the API's response as JSON")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_command(commands, "health", health, "print whether the control plane's loops run")
    help_text = "list retention periods and the data that was dropped"
    add_command(commands, "retention", retention, help_text)
    add_registry(commands)
    add_command(commands, "sync", sync, "import new models and versions from the registry")
    add_rollouts(commands)
    add_releases(commands)
    add_plans(commands)
    add_governance(commands)
    add_serving(commands)
    add_experiments(commands)
    add_outcomes(commands)
    add_versions(commands)
    add_tenants(commands)
    add_keys(commands)
    add_notifications(commands)
    return parser


def retention(client: Client, options: argparse.Namespace) -> int:
    columns = ["name", "days", "rows", "bytes", "freed_at", "rows_freed_total", "held", "error"]
    return show_rows(options, client.get("retention/"), columns)


def health(client: Client, options: argparse.Namespace) -> int:
    """Print the loops' states; exit with 1 if one has stopped, as a pipeline would wait for ever.

    Services open to unauthenticated clients are printed and do not change the exit code.
    """
    answer = client.get("status/")
    if options.json:
        show_json(answer)
    else:
        columns = ["name", "turned_by", "age_s", "late_after_s", "state"]
        for row in answer["loops"]:
            row["state"] = f"STOPPED: {row['without_it']}" if row["is_late"] else "turns"
        show_rows(options, answer["loops"], columns)
        print(f"newest routing table: published {answer['published_age_s']} s ago")
        if answer["trouble"]:
            print(answer["trouble"])
        for row in answer.get("open_services", []):
            print(f"OPEN: {row['kind']} at {row['address']}: {row['danger']}")
        for row in answer.get("refused_messages", []):
            sender = row["instance"] or "an unknown instance"
            print(f"REFUSED: {row['count']} of {sender} on {row['channel']}: {row['why']}")
    return EXIT_OK if answer["is_well"] else EXIT_REFUSED_BY_VERDICT


def sync(client: Client, options: argparse.Namespace) -> int:
    report = client.post("models/sync/")
    if options.json:
        return show_json(report)
    print(f"imported: {', '.join(report['imported']) or 'nothing'}")
    print(f"refused:  {', '.join(report['refused']) or 'nothing'}")
    if report.get("waiting"):
        print(f"not readable now: {', '.join(report['waiting'])}")
    if report.get("pushed"):
        print(f"written to MLflow: {', '.join(report['pushed'])}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
