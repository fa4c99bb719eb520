"""`mount.voile`: what mount(8) runs for `mount -t voile` (mount(8), "EXTERNAL HELPERS")."""

from __future__ import annotations

import os
import sys

from voile.cli import mount, report
from voile.cli.arguments import FLAG, VALUE, Options, parse
from voile.overlay.params import UsageError

HELP = """usage: mount.voile SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]

The helper that mount(8) runs for 'mount -t voile SOURCE MOUNTPOINT -o OPTIONS'; options as for 'voile mount'.

  -s    tolerate unknown options
  -f    fake: check everything, mount nothing
  -n    do not write /etc/mtab (it never does)
  -v    say what was mounted
"""

# Here -f is fake and not foreground, and there is no -d.
_OPTIONS: Options = {
    (b"-o",): VALUE,
    (b"-t",): VALUE,
    (b"-N",): VALUE,
    (b"-s",): FLAG,
    (b"-f",): FLAG,
    (b"-n",): FLAG,
    (b"-v",): FLAG,
    (b"-h", b"--help"): FLAG,
    (b"-V", b"--version"): FLAG,
}


def main(argv: list[str] | None = None) -> int:
    """Run mount.voile; return the exit bits of mount(8)."""
    report.open_standard_files()
    words = [os.fsencode(word) for word in (sys.argv[1:] if argv is None else argv)]
    try:
        return _main(words)
    except UsageError as error:
        report.say(str(error))
        return report.USAGE
    except KeyboardInterrupt:
        return report.INTERRUPTED
    except Exception:
        import traceback

        report.say("internal error, please report it:")
        traceback.print_exc()
        return report.INTERNAL


def _main(words: list[bytes]) -> int:
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    if b"-V" in arguments:
        from voile import __version__

        report.tell(f"mount.voile {__version__}\n")
        return report.OK
    if len(arguments.operands) != 2:
        raise UsageError(f"a source and a mount point are needed, {len(arguments.operands)} operands given")
    source, target = arguments.operands
    namespace = arguments.last(b"-N")
    if namespace is not None:
        _enter(namespace)
    options = arguments.all(b"-o")
    status = mount.remounted(options, target)
    if status is not None:
        return status
    params = mount.build(options, source, sloppy=b"-s" in arguments)
    if b"-f" in arguments:
        return report.OK
    verbose = b"-v" in arguments
    if verbose:
        # Before the mount, because the process that returns from it is the daemon.
        report.say(f"mounting {os.fsdecode(params.source)} on {os.fsdecode(target)}")
    return mount.mount(params, target)


def _enter(namespace: bytes) -> None:
    """`mount -N`: a pid, or a path of a mount namespace."""
    from voile.linux import namespaces

    path = b"/proc/%s/ns/mnt" % namespace if namespace.isdigit() else namespace
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        namespaces.setns(fd, namespaces.CLONE_NEWNS)
        os.close(fd)
    except OSError as error:
        raise UsageError(f"option '-N': {os.fsdecode(namespace)}: {error.strerror}")


if __name__ == "__main__":
    sys.exit(main())
