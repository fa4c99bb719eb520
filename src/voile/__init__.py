"""Voile: an overlay file system for throwaway trees, as fast as no fsync, as honest as fsync."""

__version__ = "0.1.0"


def sync(mountpoint: bytes) -> bool:
    """As `voile sync`; see `voile.server.control.sync`, which says what is raised."""
    from voile.server import control

    return control.sync(mountpoint)
