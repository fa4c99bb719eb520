"""Throwaway trees with names: where they are kept, how a command runs in one, what it changed."""
