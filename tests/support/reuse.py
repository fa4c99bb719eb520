"""Mounts of what a volatile mount has left."""

import pytest

from .overlays import VoileError, VoileOverlay

HELD = "volatile,reuse=auto,hold=on"


def refused(layers, options=HELD):
    """Why it cannot be mounted: the one line."""
    overlay = VoileOverlay(layers)
    try:
        with pytest.raises(VoileError) as caught:
            overlay.mount(options)
    finally:
        overlay.close()
    status, said = caught.value.args
    assert (status, said.count("\n")) == (32, 1), said
    return said
