"""The simulation of a busy machine must end with the process that it slows down."""

import subprocess

from bench.busy import Yielding


def test_yielding_ends_when_it_is_stopped():
    with subprocess.Popen(["sleep", "30"], start_new_session=True) as process:
        yielding = Yielding(process.pid)
        yielding.start()
        yielding.stop()
        assert not yielding.is_alive()
        process.kill()
