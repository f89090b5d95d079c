"""`python -m embedded up|demo|status`: the embedded stack on the command line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from embedded.logs import Console
from embedded.part import StackError
from embedded.ports import USUAL_PORTS
from embedded.stack import PART_NAMES, load_stack, running
from embedded.state import DEFAULT_STATE_DIR, StateDir
from embedded.up import Options, read_start_limit, run_stack


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(quiet=getattr(options, "quiet", False))
    try:
        code: int = options.command(options, console)
    except StackError as error:
        console.complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def up(options: argparse.Namespace, console: Console) -> int:
    asked = {name: getattr(options, f"port_{name}") for name in USUAL_PORTS}
    return run_stack(
        Options(
            state_dir=options.state_dir,
            only=options.only,
            quiet=options.quiet,
            free_ports=options.free_ports,
            ports=asked,
            start_limit_s=read_start_limit(os.environ),
            stop_with=options.stop_with,
        ),
        os.environ,
        console,
    )


def demo(options: argparse.Namespace, console: Console) -> int:
    """The stack runs beside the demo and logs to its files: the terminal is the story's."""
    story = importlib.import_module("embedded.demo.main")
    with running(options.state_dir, show_progress=True) as stack:
        code: int = story.run(stack, exit_when_done=options.exit)
        return code


def status(options: argparse.Namespace, console: Console) -> int:
    stack = load_stack(StateDir(options.state_dir))
    if stack is None:
        console.say(f"no stack is ready on {options.state_dir}")
        return 1
    console.say(f"pid {stack.pid}, parts {', '.join(stack.parts)}")
    console.say(f"web {stack.urls.web}, predict {stack.urls.dataplane}, MLflow {stack.urls.mlflow}")
    return 0


def _part_names(text: str) -> set[str]:
    names = set(text.split(","))
    if unknown := names - set(PART_NAMES):
        raise argparse.ArgumentTypeError(
            f"no such part: {', '.join(sorted(unknown))} (there are {', '.join(PART_NAMES)})"
        )
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="up|demo|status")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--state-dir", type=Path, default=DEFAULT_STATE_DIR, help="what to keep everything in"
    )
    starts = commands.add_parser("up", parents=[common], help="start everything and serve")
    starts.set_defaults(command=up)
    starts.add_argument("--only", type=_part_names, help="start these parts only (a,b,c)")
    starts.add_argument("--quiet", action="store_true", help="leave the parts' output to the files")
    starts.add_argument("--free-ports", action="store_true", help="any free ports, not the usual")
    starts.add_argument("--stop-with", type=int, metavar="PID", help=argparse.SUPPRESS)
    for name, usual in USUAL_PORTS.items():
        flag = f"--port-{name.replace('_', '-')}"
        starts.add_argument(flag, dest=f"port_{name}", type=int, help=f"usually {usual}")
    tells = commands.add_parser("demo", parents=[common], help="start everything and show it")
    tells.set_defaults(command=demo)
    tells.add_argument("--exit", action="store_true", help="stop at the end of the story")
    asks = commands.add_parser("status", parents=[common], help="say what runs")
    asks.set_defaults(command=status)
    return parser


if __name__ == "__main__":
    sys.exit(main())
