"""The FUSE kernel protocol, for any file system: nothing in here knows about overlays.

`abi`         constants and structs of ``<linux/fuse.h>``
`negotiation` INIT: what both sides can do (no I/O)
`operations`  `Operations`, the base class of a file system
`requests`    request bytes → calls of `Operations` methods (no I/O)
`replies`     values → reply bytes (no I/O)
`session`     handshake, dispatch, errors → replies, notifications
`device`      the loop that reads /dev/fuse
`workers`     threads for long system calls, completed in the loop's thread
`cpu_follow`  keep the loop on its client's CPU
`sched_idle`  give way to the client there
`passthrough` backing files
`mountpoint`  /dev/fuse, mount(2), fusermount3, unmount

`examples/memfs.py` is a whole file system in 100 lines.
"""
