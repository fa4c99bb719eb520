"""Waiting for a condition, never for a time."""

import time

TIMEOUT = 30


def wait_until(condition, otherwise, timeout=TIMEOUT):
    """Until condition() is true; its value. AssertionError `otherwise` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = 0.0005
    while not (value := condition()):
        assert time.monotonic() < deadline, otherwise() if callable(otherwise) else otherwise
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return value
