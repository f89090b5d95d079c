"""`python -m embedded up|demo|status` runs the embedded stack."""

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
        console.print_error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def up(options: argparse.Namespace, console: Console) -> int:
    ports = {name: getattr(options, f"port_{name}") for name in USUAL_PORTS}
    return run_stack(
        Options(
            state_dir=options.state_dir,
            only=options.only,
            quiet=options.quiet,
            free_ports=options.free_ports,
            ports=ports,
            start_limit_s=read_start_limit(os.environ),
            stop_with=options.stop_with,
        ),
        os.environ,
        console,
    )


def demo(options: argparse.Namespace, console: Console) -> int:
    """Run the demo with a stack in another process, which logs to files: the terminal is free."""
    main = importlib.import_module("embedded.demo.main")
    with running(options.state_dir, show_progress=True) as stack:
        code: int = main.run(stack, exit_when_done=options.exit)
        return code


def status(options: argparse.Namespace, console: Console) -> int:
    stack = load_stack(StateDir(options.state_dir))
    if stack is None:
        console.print_line(f"no stack is ready in {options.state_dir}")
        return 1
    console.print_line(f"pid {stack.pid}, parts {', '.join(stack.parts)}")
    console.print_line(
        f"web {stack.urls.web}, predict {stack.urls.dataplane}, MLflow {stack.urls.mlflow}"
    )
    return 0


def _part_names(text: str) -> set[str]:
    names = set(text.split(","))
    if unknown := names - set(PART_NAMES):
        raise argparse.ArgumentTypeError(
            f"unknown part {', '.join(sorted(unknown))}; expected {', '.join(PART_NAMES)}"
        )
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="up|demo|status")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--state-dir", type=Path, default=DEFAULT_STATE_DIR, help="directory for data and logs"
    )
    up_parser = commands.add_parser("up", parents=[common], help="start everything and serve")
    up_parser.set_defaults(command=up)
    up_parser.add_argument("--only", type=_part_names, help="start only these parts (a,b,c)")
    up_parser.add_argument(
        "--quiet", action="store_true", help="write the parts' output only to log files"
    )
    up_parser.add_argument(
        "--free-ports", action="store_true", help="use any free ports instead of the usual ones"
    )
    up_parser.add_argument("--stop-with", type=int, metavar="PID", help=argparse.SUPPRESS)
    for name, usual in USUAL_PORTS.items():
        flag = f"--port-{name.replace('_', '-')}"
        up_parser.add_argument(flag, dest=f"port_{name}", type=int, help=f"usually {usual}")
    demo_parser = commands.add_parser("demo", parents=[common], help="start everything, run a demo")
    demo_parser.set_defaults(command=demo)
    demo_parser.add_argument("--exit", action="store_true", help="stop after the demo")
    status_parser = commands.add_parser("status", parents=[common], help="print what is running")
    status_parser.set_defaults(command=status)
    return parser


if __name__ == "__main__":
    sys.exit(main())
