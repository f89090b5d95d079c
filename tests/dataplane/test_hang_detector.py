"""Silence of a stopped process counts; silence of a process that waits for a core does not."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from dataplane.hang_detector import Silence

SPIN = "while True: pass"
CORE = {min(os.sched_getaffinity(0))}
ELAPSED_S = 1.0


@contextmanager
def processes(*codes):
    """Run each code in a process of its own, all on one core."""
    started = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    try:
        for process in started:
            os.sched_setaffinity(process.pid, CORE)
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def silence_of(pid):
    silence = Silence(pid)
    began = time.monotonic()
    time.sleep(ELAPSED_S)
    silence.pass_time(time.monotonic() - began)
    return silence.seconds


def test_a_stopped_process_is_silent():
    with processes(SPIN) as (pid,):
        os.kill(pid, signal.SIGSTOP)
        assert silence_of(pid) == pytest.approx(ELAPSED_S, rel=0.1)


def test_a_process_that_computes_gets_more_time():
    with processes(SPIN) as (pid,):
        assert silence_of(pid) < 0.6 * ELAPSED_S


def test_a_process_that_others_keep_from_the_core_is_silent_for_its_share_only():
    with processes(SPIN, SPIN, SPIN, SPIN) as (pid, *_):
        assert silence_of(pid) < 0.6 * ELAPSED_S


def test_a_beat_ends_it():
    silence = Silence(os.getpid())
    silence.pass_time(5.0)
    silence.beat()
    assert silence.seconds == 0.0


def test_without_kernel_counters_silence_is_tolerated_for_longer():
    silence = Silence(2**22 + 1)
    silence.pass_time(7.0)
    assert silence.seconds == 1.0
