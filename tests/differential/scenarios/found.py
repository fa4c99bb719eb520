"""What the fuzzer has found: shrunk programs, played by test_fuzz as the fuzzer plays them."""

import os

from differential.fuzz_program import Program, Slot

__all__ = ["PROGRAMS", "Slot", "os"]  # what pasted programs use

PROGRAMS = {
    # The attributes of a directory are read only where something may lie below (ovl_lookup_data.last).
    "nofollow_last_lower": Program(
        options=("redirect_dir=nofollow",),
        lowers=[[("moved", b"a", b"b/f", False)], []],
        steps=[(0, "list", b"b")],
    ),
    "nofollow_upper_without_lower": Program(
        options=("redirect_dir=nofollow",),
        upper=[("moved", b"a", b"b/f", False)],
        steps=[(0, "list", b"b")],
    ),
    "absolute_redirect_below_the_last_lower_of_the_parent": Program(
        lowers=[[("dir", b"p/a")], [("moved", b"z", b"p/a", False)], [("file", b"z/f")]],
        steps=[(0, "list", b"p/a")],
    ),
    # Whether a directory is empty is no reading of it.
    "access_time_of_a_directory_that_is_not_removed": Program(
        daemon=("timeout=0",),
        upper=[("block", b"b/c/a")],
        steps=[(0, "rmdir", b"b/c")],
    ),
    # The origin is stored before a redirect is refused.
    "origin_of_a_directory_that_must_not_be_followed": Program(
        options=("userxattr",),
        upper=[("dir", b"a/b")],
        lowers=[[("moved", b"c", b"a/b", False)], [("file", b"a/b/f")]],
    ),
    # A redirect is refused wherever it would lead, also to nothing.
    "redirect_to_nothing_that_must_not_be_followed": Program(
        options=("redirect_dir=nofollow",),
        upper=[("moved", b"b", b"a/f", False)],
        lowers=[[("dir", b"a")]],
    ),
    "redirect_that_must_not_be_followed": Program(
        options=("redirect_dir=nofollow",),
        upper=[("moved", b"b", b"a/f", False)],
        lowers=[[("dir", b"a"), ("dir", b"b")]],
        steps=[(0, "list", b"a"), (0, "look", b"a/f"), (0, "rmdir", b"a/f"), (0, "rmdir", b"a")],
    ),
    "lower_redirect_that_must_not_be_followed": Program(
        options=("redirect_dir=nofollow",),
        lowers=[[("dir", b"a")], [("moved", b"b", b"a/f", False)], [("dir", b"a"), ("dir", b"b")]],
        steps=[(0, "list", b"a"), (0, "look", b"a/f")],
    ),
    # Nothing is marked in the new place of what cannot move.
    "redirect_too_long": Program(
        options=("redirect_dir=on",),
        upper=[("fifo", b"a/b/g")],
        lowers=[[("file", b"L" * 200 + b"/" + b"M" * 200 + b"/f")]],
        steps=[(0, "rename", b"L" * 200 + b"/" + b"M" * 200, b"a/b/b", 0)],
    ),
}
