"""Makes a program smaller that shows a difference: leaves out, then simplifies, as long as it still does.

A program without some of its steps is a program, and so is one without some parts of its layers.
"""

import time

from differential.fuzzer.arena import Unlike


def shrink(arena, program, difference, seconds=60):
    """(program, difference), as small as can be reached in that time."""
    until = time.monotonic() + seconds
    best = [program, difference]

    def still(smaller):
        if smaller == best[0] or time.monotonic() > until:
            return False
        try:
            arena.run(smaller)
        except Unlike as e:
            best[:] = smaller, e
            return True
        return False

    before = None
    while before != best[0] and time.monotonic() < until:
        before = best[0]
        _shorten(still, lambda: best[0].steps, lambda steps: best[0]._replace(steps=steps))
        if best[0].upper:
            _shorten(still, lambda: best[0].upper, lambda upper: best[0]._replace(upper=upper))
        for field, least in (("data", 0), ("lowers", 1)):
            _shorten_layers(still, best, field, least)
        _shorten(still, lambda: best[0].options, lambda options: best[0]._replace(options=options))
        for simple in ({"daemon": ()}, {"lowers_on": None}, {"on": "tmpfs"}, {"looks": True}):
            still(best[0]._replace(**simple))
        _simplify(still, best)
    return best


def _shorten_layers(still, best, field, least):
    def put(n, calls):
        layers = getattr(best[0], field)
        return best[0]._replace(**{field: _with(layers, n, calls)})

    for n in range(len(getattr(best[0], field))):
        _shorten(still, lambda n=n: getattr(best[0], field)[n], lambda calls, n=n: put(n, calls))
    _shorten(
        still,
        lambda: getattr(best[0], field),
        lambda layers: best[0]._replace(**{field: layers}),
        least=least,
    )


def _shorten(still, get, put, least=0):
    """Leaves out parts of a list: halves first, then ever smaller ones."""
    size = len(get())
    while size:
        at = len(get())
        while at > 0:
            items = get()
            start = max(0, at - size)
            rest = items[:start] + items[at:]
            if len(rest) >= least:
                still(put(rest))
            at = start
        size //= 2


def _simplify(still, best):
    """By root, and with the simplest of what is given to layers."""
    for n, step in enumerate(best[0].steps):
        still(best[0]._replace(steps=_with(best[0].steps, n, (0, *step[1:]))))
    for n, layer in enumerate(best[0].lowers):
        for m, call in enumerate(layer):
            changed = _with(best[0].lowers[n], m, _plain(call))
            still(best[0]._replace(lowers=_with(best[0].lowers, n, changed)))
    for m, call in enumerate(best[0].upper or ()):
        still(best[0]._replace(upper=_with(best[0].upper, m, _plain(call))))


def _plain(call):
    if call[0] == "file":
        return (*call[:2], b"x")
    return call[:2] if call[0] == "dir" else call


def _with(items, n, item):
    return [*items[:n], item, *items[n + 1 :]]
