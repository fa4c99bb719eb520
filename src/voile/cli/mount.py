"""`voile mount`, and the same without its name, as mount.fuse3 and container engines call it."""

from __future__ import annotations

import os
import sys

from voile.cli import report
from voile.cli.arguments import FLAG, VALUE, Options, parse
from voile.overlay import params as mount_options
from voile.overlay.params import Params, UsageError

HELP = """usage: voile mount [-f] [-d] -o OPTIONS MOUNTPOINT
       voile mount -o remount,ro|rw|noatime|... MOUNTPOINT

Mount an overlay. Returns when the mount answers, leaving a daemon behind.

  -o OPTIONS     lowerdir=A:B:C[,upperdir=U,workdir=W], volatile, fsync=auto|strict|volatile, userxattr,
                 redirect_dir=on|follow|nofollow|off, xino=on|off|auto, aufs_whiteouts=on|off, allow_other,
                 timeout=SECONDS, ro, noatime, nosuid, nodev, noexec, ...; may be given several times
  -f             stay in the foreground
  -d             stay in the foreground, and write every request and reply to stderr
  -t TYPE        the type to show after "fuse." (default: voile)

Exit status: 0 mounted; 1 usage or permission; 2 system error; 4 internal error; 8 interrupted;
32 mount failed.
"""

_OPTIONS: Options = {
    (b"-o", b"--options"): VALUE,
    (b"-t", b"--types"): VALUE,
    (b"-f", b"--foreground"): FLAG,
    (b"-d", b"--debug"): FLAG,
    (b"-h", b"--help"): FLAG,
}


def main(words: list[bytes], from_helper: bool = False) -> int:
    """Run `voile mount`. `from_helper`: a SOURCE may stand before the mount point."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    *source, target = arguments.operands or [b""]
    if not target or len(source) > (1 if from_helper else 0):
        what = "a source and a mount point" if from_helper else "one mount point"
        raise UsageError(f"{what} needed, {len(arguments.operands)} operands given")
    options = arguments.all(b"-o")
    status = remounted(options, target)
    if status is not None:
        return status
    # Container engines unpack images as for fuse-overlayfs, which always looks for these.
    engine = from_helper and not source
    params = build(options, source[0] if source else None, aufs_whiteouts=engine)
    fstype = arguments.last(b"-t")
    if fstype is not None:
        params.subtype = fstype.removeprefix(b"fuse.").removeprefix(b"fuseblk.")
    debug = b"-d" in arguments
    return mount(params, target, foreground=debug or b"-f" in arguments, debug=debug)


def remounted(options: list[bytes], target: bytes) -> int | None:
    """Remount, if the `-o` values ask for it: the exit status; None: they do not."""
    if any(b"remount" in item for item in options):
        from voile.cli import remount

        if remount.asked_for(options):
            return remount.main(options, target)
    return None


def build(
    options: list[bytes], source: bytes | None, *, sloppy: bool = False, aufs_whiteouts: bool = False
) -> Params:
    """Parse and check all `-o` values; `aufs_whiteouts` is that option's default. Raises UsageError."""
    params = Params()
    params.aufs_whiteouts = aufs_whiteouts
    if source:
        params.source = source  # fsname= has the last word
    for item in options:
        mount_options.parse(item, params, sloppy=sloppy)
    return params.check()


def mount(params: Params, target: bytes, *, foreground: bool = False, debug: bool = False) -> int:
    """Mount, and return an exit status in the process that the caller waits for."""
    from gc import disable

    disable()  # modules and layers stay: a collection would find nothing, and cost the start a millisecond
    from voile.fuse.negotiation import ProtocolError
    from voile.overlay.super import LostData, MountError
    from voile.server import process

    started = os.getpid()
    try:
        inherited = process.open_files()
        process.serve(
            params,
            target,
            mounted=None if foreground else lambda: process.to_background(inherited),
            debug=debug,
        )
    except (OSError, MountError, ProtocolError) as error:
        if os.getpid() != started:  # the daemon: its caller has gone, its stderr is the system log
            print(report.describe(error), file=sys.stderr)
        else:
            report.say(report.describe(error))
        # After LostData it was mounted, and has been unmounted.
        return report.SYSTEM if isinstance(error, LostData) else report.exit_status(error)
    if not foreground:
        os._exit(0)  # the daemon: nothing is left to tidy up, and nobody to tell
    return report.OK
