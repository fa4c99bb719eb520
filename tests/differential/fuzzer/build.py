"""Layers from plain data."""

import os
import stat

from differential.actors import kind_of


def build(layer, calls, below, nested=False):
    """Makes what can be made; what cannot (its name is taken, its parent is a file) is left out.

    `below`: the roots of the layers below, built already. nested: the layer lies on an overlay itself, where
    there are only those whiteouts that are attributes.
    """
    for method, *arguments in calls:
        special = SPECIAL.get(method)
        if nested and method in NESTED:
            special = NESTED[method]
        if special:
            special(layer, *arguments)
        elif _free(layer, arguments[0]) or (
            method in ("dir", "opaque") and _inside(layer, arguments[0]) and _is_dir(layer, arguments[0])
        ):
            getattr(layer, method)(*arguments)
    _without_stale_whiteouts(layer, below)
    layer.settle()


def _without_stale_whiteouts(layer, below):
    """Where nothing is merged the kernel lists whiteouts, and cannot remove what holds them; voile can."""
    for directory, names, files in os.walk(layer.root):
        relative = os.path.relpath(directory, layer.root)
        if relative == b"." or _merges(layer.root, relative, below):
            continue
        for name in names + files:
            path = os.path.join(directory, name)
            if kind_of(path) == stat.S_IFCHR and os.lstat(path).st_rdev == 0:
                os.unlink(path)


def _merges(root, path, below):
    """Whether directories of lower layers lie below this one; redirects are taken for an end."""
    stack = [root, *below]
    for part in path.split(b"/"):
        directories = []
        for place in (os.path.join(each, part) for each in stack):
            kind = kind_of(place)
            if kind == stat.S_IFDIR:
                directories.append(place)
            if kind not in (None, stat.S_IFDIR) or (kind and _ends(place)):
                break
        stack = directories
        if len(stack) < 2 or not stack[0].startswith(root + b"/"):
            return False
    return True


def _ends(directory):
    marks = {name.rpartition(".")[2]: name for name in os.listxattr(directory)}
    return "redirect" in marks or ("opaque" in marks and os.getxattr(directory, marks["opaque"]) == b"y")


def _link(layer, old, new):
    if not (_free(layer, new) and _inside(layer, old)):
        return
    kind = kind_of(_at(layer, old))
    # Special files can have no user.* attributes: the kernel makes entries of the index for them that have no
    # origin, which it then refuses.
    if kind == stat.S_IFREG or (kind not in (None, stat.S_IFDIR) and not layer.ordinary):
        layer.link(old, new)


def _big(layer, name):
    """Too big to be copied up in passing."""
    if _free(layer, name):
        layer.file(name, b"0123456789abcdef" * 20_000)


def _flags(layer, name, flags):
    """Those of chattr(1)."""
    if _inside(layer, name) and kind_of(_at(layer, name)) in (stat.S_IFREG, stat.S_IFDIR):
        layer.chattr(name, flags)


def _marked(layer, name, key, value):
    """An attribute of the overlay's own where no overlay has put it."""
    if _inside(layer, name):
        if _free(layer, name):
            layer.file(name, b"marked")
        if kind_of(_at(layer, name)) in (stat.S_IFREG, stat.S_IFDIR):
            layer.mark(name, {key: value})


def _moved(layer, old, new, relative):
    """What rename(2) leaves of a lower directory: a whiteout, and a directory that redirects there."""
    if not (_free(layer, old) and _free(layer, new)) or new.startswith(old + b"/") or old == new:
        return
    same_parent = os.path.dirname(old) == os.path.dirname(new)
    value = os.path.basename(old) if relative and same_parent else b"/" + old
    layer.whiteout(old)
    layer.dir(new, 0o755, (0, 0), {"trusted.overlay.redirect": value})


def _hidden(layer, name):
    _xwhiteout(layer, os.path.dirname(name) or b".", os.path.basename(name))


def _moved_nested(layer, old, new, relative):
    if _free(layer, old) and _free(layer, new) and not (new + b"/").startswith(old + b"/"):
        same_parent = os.path.dirname(old) == os.path.dirname(new)
        _hidden(layer, old)
        _redirected(layer, new, os.path.basename(old) if relative and same_parent else b"/" + old)


def _redirected(layer, name, value):
    """A redirect of any kind, also one that no rename leaves."""
    if _free(layer, name):
        layer.dir(name, 0o755, (0, 0), {"trusted.overlay.redirect": value})


def _xwhiteout(layer, directory, name):
    """The form of a whiteout for layers that lie on an overlay themselves."""
    if _inside(layer, directory) and kind_of(_at(layer, directory)) in (None, stat.S_IFDIR):
        path = directory + b"/" + name
        if _free(layer, path):
            layer.file(path, b"", 0o644, (0, 0), {"trusted.overlay.whiteout": b"y"})
            layer.dir(directory, 0o755, (0, 0), {"trusted.overlay.opaque": b"x"})


def _metacopy(layer, name, redirect, nested=False):
    """A file whose data is below, perhaps in another place, perhaps nowhere."""
    if _free(layer, name):
        marks = {"trusted.overlay.metacopy": b""}
        if redirect is not None:
            # One lower file under two names is one inode for the kernel, with the attributes of either.
            target = redirect[1:]
            inside = (name + b"/").startswith(target + b"/") or target.startswith(name + b"/")
            if inside or not _free(layer, target):
                return
            marks["trusted.overlay.redirect"] = redirect
            if nested:
                _hidden(layer, target)
            else:
                layer.whiteout(target)
        layer.sparse(name, 320_000).mark(name, marks)


SPECIAL = {
    "link": _link,
    "big": _big,
    "flags": _flags,
    "marked": _marked,
    "moved": _moved,
    "redirected": _redirected,
    "xwhiteout": _xwhiteout,
    "metacopy": _metacopy,
}


NESTED = {
    "whiteout": _hidden,
    "moved": _moved_nested,
    "metacopy": lambda layer, name, redirect: _metacopy(layer, name, redirect, True),
}


def _at(layer, name):
    return os.path.join(layer.root, name)


def _is_dir(layer, name):
    return kind_of(_at(layer, name)) == stat.S_IFDIR


def _inside(layer, name):
    """Every directory on the way is one of the layer's own, or is still missing."""
    parts = name.split(b"/")[:-1]
    kinds = [kind_of(_at(layer, b"/".join(parts[: n + 1]))) for n in range(len(parts))]
    return all(kind in (None, stat.S_IFDIR) for kind in kinds)


def _free(layer, name):
    return _inside(layer, name) and kind_of(_at(layer, name)) is None
