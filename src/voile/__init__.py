"""Voile: an overlay file system for throwaway trees, as fast as no fsync, as honest as fsync."""

__version__ = "0.1.0"
