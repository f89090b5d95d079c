"""`python -m dataplane` runs one instance, configured by its environment, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from dataplane.config import ConfigError, load
from dataplane.handover import take_over_or_bind
from dataplane.workers import Supervisor


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit code is 2 for invalid settings."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        config = load(os.environ)
        config.state_dir.mkdir(parents=True, exist_ok=True)
        supervisor = Supervisor(config, *take_over_or_bind(config))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"dataplane: {error}\n")
        return 2
    return asyncio.run(supervisor.run())


if __name__ == "__main__":
    sys.exit(main())
