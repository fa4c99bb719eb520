"""What the fuzzer has found and what needs more than one mount to show; the rest is in scenarios/."""

from differential.fuzz_program import Program, Slot  # noqa: F401  (for what is pasted)

PROGRAMS: dict[str, Program] = {}
