"""What a call says, as a value."""


def result(call, *args, **more):
    """0 or the errno."""
    try:
        call(*args, **more)
    except OSError as exc:
        return exc.errno
    return 0
