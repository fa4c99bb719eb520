"""What the fuzzer has found: shrunk programs, played by test_fuzz as the fuzzer plays them."""

import os

from differential.fuzzer.program import Program, Slot

__all__ = ["PROGRAMS", "Slot", "os"]  # what pasted programs use

ACL = bytes.fromhex("02000000 01000700ffffffff 04000000ffffffff 20000000ffffffff")

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
    # The new place is marked impure before it is seen that the redirect is too long; a listing of a directory
    # that is not merged takes the mark away where nothing in it has an origin.
    "redirect_too_long_into_a_lower_directory": Program(
        options=("redirect_dir=on",),
        lowers=[[("file", b"a/b/g"), ("dir", b"L" * 200 + b"/" + b"M" * 200)]],
        steps=[(0, "rename", b"L" * 200 + b"/" + b"M" * 200, b"a/b/b", 0)],
    ),
    "redirect_of_a_metacopy_file_too_long": Program(
        options=("metacopy=on",),
        lowers=[[("dir", b"c/d/e")], [("file", b"a/b/" + b"n" * 255, b"x")]],
        steps=[(0, "rename", b"a/b/" + b"n" * 255, b"c/d/a", 0)],
    ),
    "impure_until_listed": Program(
        upper=[("dir", b"a/b"), ("dir", b"c")],
        lowers=[[("file", b"f"), ("file", b"g")]],
        steps=[
            (0, "rename", b"f", b"a/b/f", 0),
            (0, "rename", b"g", b"c/g", 0),
            (0, "list", b"a/b"),
            (0, "unlink", b"a/b/f"),
            (0, "unlink", b"c/g"),
            (0, "list", b"a/b"),
            (0, "create", b"a/b/h", b"x", 0o644),
        ],
    ),
    # An opaque directory on the way to where a redirect leads hides what is below it.
    "opaque_on_the_way_of_a_redirect": Program(
        lowers=[[("moved", b"a/a", b"b/f", True)], [("opaque", b"a")], [("socket", b"a/a/b")]],
    ),
    # A redirect below an opaque directory is not followed, but has to be valid.
    "invalid_redirect_below_an_opaque_directory": Program(
        lowers=[[("moved", b"a/b", b"c", False)], [("redirected", b"a/b", b"//a"), ("opaque", b"a")], []],
    ),
    # What cannot be looked up may have an origin.
    "impure_with_what_cannot_be_looked_up": Program(
        upper=[("moved", b"a/b/c", b"d/b", True)],
        lowers=[[("file", b"a/b/c/g")], [("redirected", b"a/b", b"/a/")], []],
        steps=[(0, "remount")],
    ),
    # Without numbers that last nobody looks into an impure directory.
    "impure_on_several_file_systems": Program(
        lowers_on="ext4",
        lowers=[[("file", b"a/b/g")]],
        steps=[
            (0, "open", Slot(0), b"a/b/g", os.O_RDWR),
            (0, "mkdir", b"a/f", 0o700),
            (0, "link_fd", Slot(0), b"a/f/f"),
            (0, "unlink", b"a/f/f"),
        ],
    ),
    # No data is written to a metacopy file that is a hole, so its time stays.
    "data_of_a_metacopy_file_that_is_a_hole": Program(
        options=("metacopy=on",),
        lowers=[[("sparse", b"f", 200_000), ("sparse", b"g", 200_000, (70_000, b"data"))]],
        steps=[
            *[(0, "chmod", name, 0o600) for name in (b"f", b"g")],
            *[(0, "open", Slot(n), name, os.O_RDWR) for n, name in enumerate((b"f", b"g"))],
            *[(0, "flook", Slot(n)) for n in (0, 1)],
        ],
    ),
    # Who has a removed directory open sees its mode, also when there were whiteouts in it.
    "mode_of_a_removed_directory": Program(
        lowers=[[("file", b"b/c"), ("dir", b"b", 0o555)]],
        steps=[
            (0, "open", Slot(5), b"b", os.O_RDONLY),
            (0, "unlink", b"b/c"),
            (0, "rmdir", b"b"),
            (0, "flook", Slot(5)),
        ],
    ),
    # The flags of the root are gone after a mount.
    "flags_of_the_root": Program(
        steps=[
            (0, "chattr", b".", 16),
            (0, "create", b"f", b"", 0o644),
            (0, "remount"),
            (0, "fsxattr", b"."),
            (0, "create", b"f", b"", 0o644),
        ],
    ),
    # An append-only directory cannot be marked impure: the first lookup of a merged one in it fails, and
    # every copy-up into it.
    "append_only_and_impure": Program(
        upper=[("file", b"c/d/d", b"x"), ("flags", b"c", 32)],
        lowers=[[("dir", b"c/d/d"), ("file", b"c/f")]],
        steps=[(0, "unlink", b"c/d/d"), (0, "unlink", b"c/d/d"), (0, "chmod", b"c/f", 0o600)],
    ),
    # A copied-up name of a lower hard link has a new st_ino, which its directory must list.
    "d_ino_of_a_broken_hard_link": Program(
        lowers=[[("big", b"a/f"), ("link", b"a/f", b"b/c/g")]],
        steps=[(0, "list", b"b/c"), (0, "truncate", b"b/c/g", 5)],
    ),
    "redirect_too_long": Program(
        options=("redirect_dir=on",),
        upper=[("fifo", b"a/b/g")],
        lowers=[[("file", b"L" * 200 + b"/" + b"M" * 200 + b"/f")]],
        steps=[(0, "rename", b"L" * 200 + b"/" + b"M" * 200, b"a/b/b", 0)],
    ),
    # truncate(2) to the size that a file has is no change on tmpfs; ftruncate(2) is.
    **{
        f"truncated_to_the_same_size_{'volatile' if options else 'synced'}_{on}": Program(
            options=options,
            on=on,
            upper=[("file", b"u", b""), ("file", b"v", b"x")],
            lowers=[[("file", b"e", b""), ("file", b"f", b"x"), ("file", b"g", b"x"), ("big", b"a/b/h")]],
            steps=[
                *[(0, "truncate", name, 0) for name in (b"u", b"v", b"e", b"f", b"a/b/h")],
                (0, "truncate", b"g", 1),
                (0, "utime", b"g", 1, 2),
                (0, "truncate", b"g", 1),
                (0, "open", Slot(0), b"g", os.O_RDWR),
                (0, "ftruncate", Slot(0), 1),
            ],
        )
        for options in ((), ("volatile",))
        for on in ("tmpfs", "ext4", "xfs")
    },
    # Who copies a range does not read the file.
    "access_time_after_copy_file_range": Program(
        upper=[("file", b"f", b"page" * 2048, 0o644, (2000, 3000))],
        steps=[
            (2, "open", Slot(2), b"f", os.O_RDWR),
            (2, "copy_file_range", Slot(2), Slot(2), 1, 4096, 70000),
        ],
    ),
    # What empties a removed directory does not count as reading it.
    "access_time_of_a_directory_that_was_removed": Program(
        upper=[("whiteout", b"a/b/c")],
        lowers=[[("dir", b"a/b")]],
        steps=[
            (0, "open", Slot(5), b"a/b", os.O_NONBLOCK),
            (0, "futimens", Slot(5), 1000000000000000000, 1234567890123456789),
            (0, "rmdir", b"a/b"),
            (0, "getdents", Slot(5)),
        ],
    ),
    "impure_mark_where_only_a_whiteout_is_left": Program(
        upper=[
            ("moved", b"c", b"a/b/c", True),
            ("dir", b"b/d/g"),
            ("xwhiteout", b"b/d", b"w"),
        ],
        lowers=[[("big", b"h")]],
        steps=[
            (0, "rename", b"b/d", b"a/b/c/f", 1),
            (0, "rename", b"h", b"a/b/c/f/a", 0),
            (0, "rename", b"a/b/c/f/a", b"a/b/c/f/g/f", 0),
        ],
    ),
    # Only who wants to be rid of O_APPEND is told that the file may be appended to alone.
    "write_to_a_file_that_was_open_before_it_was_append_only": Program(
        daemon=("passthrough=off",),
        lowers=[[("file", b"d/f", b"x")]],
        steps=[
            (0, "open", Slot(0), b"d/f", os.O_RDWR | os.O_NONBLOCK),
            (0, "chattr", b"d/f", 32),
            (0, "write", Slot(0), b"x"),
        ],
    ),
    "write_to_a_copied_up_file_that_was_open_before_it_was_append_only": Program(
        lowers=[[("file", b"c/b", b"0123456789abcdef" * 256, 0o2644, (0, 0), None)]],
        steps=[
            (0, "open", Slot(2), b"c/b", os.O_RDWR | os.O_NONBLOCK),
            (0, "fchmod", Slot(2), 0o6777),
            (0, "fchown", Slot(2), 2000, 1000),
            (0, "chattr", b"c/b", 32),
            (0, "pwrite", Slot(2), b"0123456789abcdef" * 256, 5000),
        ],
    ),
    "link_to_what_has_lost_its_name": Program(
        daemon=("timeout=0",),
        lowers=[[("big", b"c/d/b")]],
        steps=[
            (0, "open", Slot(0), b"c/d/b", os.O_ACCMODE | os.O_NONBLOCK),
            (0, "unlink", b"c/d/b"),
            (0, "link_fd", Slot(0), b"c/d/g"),
        ],
    ),
    # FUSE sets its flag for both kinds of ACL.
    "set_group_id_and_a_default_acl": Program(
        steps=[
            (0, "chmod", b".", 0o6777),
            (0, "chown", b".", 2000, -1),
            (2, "setxattr", b".", "system.posix_acl_default", ACL),
        ],
    ),
    "set_group_id_and_no_acl_any_more": Program(
        steps=[
            (0, "chmod", b".", 0o6777),
            (1, "mkdir", b"f", 0o1777),
            (1, "removexattr", b"f", "system.posix_acl_access"),
        ],
    ),
    "times_of_a_directory_with_whiteouts_that_was_replaced": Program(
        options=("redirect_dir=on",),
        upper=[("whiteout", b"m/b")],
        lowers=[[("dir", b"m"), ("dir", b"a/a/b")]],
        steps=[
            (0, "open", Slot(4), b"m", os.O_NONBLOCK),
            (0, "rename", b"a/a/b", b"m", 0),
            (0, "pread", Slot(4), 10, 70000),
        ],
    ),
    # An opaque directory on the way to one with an absolute redirect does not stop that (ovl_check_redirect).
    "absolute_redirect_below_an_opaque_directory": Program(
        lowers=[
            [("moved", b"c/d", b"a/f", True)],
            [("opaque", b"c"), ("redirected", b"c/d", b"/e")],
            [("file", b"e/f", b"x"), ("dir", b"c")],
        ],
        steps=[(0, "list", b"a/f")],
    ),
    "absolute_redirect_out_below_an_opaque_directory": Program(
        lowers=[
            [("moved", b"c/d", b"a/f", True)],
            [("opaque", b"c"), ("redirected", b"c/d", b"/a/../b")],
            [("file", b"a/a", b"x")],
        ],
        steps=[(0, "list", b"a/f")],
    ),
    "immutable_for_ioctls_alone": Program(
        upper=[("marked", b"a/b", "trusted.overlay.protattr", b"i")],
        steps=[(0, "open", Slot(1), b"a/b", os.O_ACCMODE | os.O_NONBLOCK), (0, "close", Slot(1))],
    ),
    # The kernel does not ask for the mode after these calls.
    "set_id_bits_after_fallocate": Program(
        lowers=[[("file", b"f", b"page" * 2048, 0o4755, (2000, 3000), None)]],
        steps=[(2, "open", Slot(3), b"f", os.O_WRONLY), (2, "fallocate", Slot(3), 16, 1, 10000)],
    ),
    "link_count_of_a_merged_directory_that_was_replaced": Program(
        lowers=[[("file", b"c/b", b"x")]],
        steps=[
            (0, "mkdir", b"f", 0o777),
            (0, "rename", b"c/b", b"f/b", 0),
            (2, "open", Slot(4), b"c", os.O_RDONLY),
            (0, "mkdir", b"a", 0o777),
            (0, "rename", b"a", b"c", 0),
            (2, "futimens", Slot(4), 0, 0),
        ],
    ),
}
