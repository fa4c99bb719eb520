"""Puts the overlay behind FUSE: operations, the daemon's process, and its control interface."""
