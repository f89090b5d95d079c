"""`python -m dataplane`: one instance, from its environment to its graceful stop."""

from __future__ import annotations

import logging
import os
import sys

import uvloop

from dataplane.config import ConfigError, load
from dataplane.instance import serve


def main() -> int:
    """Run until SIGTERM or SIGINT; exit code 2 for settings that cannot be used."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config = load(os.environ)
    except ConfigError as error:
        sys.stderr.write(f"dataplane: {error}\n")
        return 2
    return uvloop.run(serve(config))


if __name__ == "__main__":
    sys.exit(main())
