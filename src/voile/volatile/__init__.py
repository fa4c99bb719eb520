"""Volatile mounts: sync calls are omitted, and the upper file system's errors are reported all the same."""
