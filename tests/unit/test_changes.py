"""What a sandbox changed, from layers made by hand in the kernel's format."""

import os

import pytest

from voile.sandbox.changes import count


@pytest.fixture
def layers(tmp_path):
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    upper.mkdir()
    lower.mkdir()
    try:
        os.setxattr(upper, "user.test", b"")
    except OSError:
        pytest.skip("no user xattrs here")
    return upper, lower


def counted(layers, *hidden):
    counts = count(*map(os.fsencode, layers), True, [os.fsencode(path) for path in hidden])
    return counts.added, counts.changed, counts.deleted


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def whiteout(path):
    os.mknod(path, 0o020000, 0)


def test_nothing(layers):
    write(layers[1] / "a")
    assert counted(layers) == (0, 0, 0)


def test_each_kind(layers):
    upper, lower = layers
    for name in ("changed", "gone", "dir/deep/changed", "dir/gone"):
        write(lower / name)
    for name in ("changed", "dir/deep/changed", "dir/deep/added"):
        write(upper / name)
    (upper / "link").symlink_to("nowhere")
    whiteout(upper / "gone")
    whiteout(upper / "dir" / "gone")
    assert counted(layers) == (2, 2, 2)


def test_directory_counts_when_its_own_attributes_changed(layers):
    upper, _ = layers
    for layer in layers:
        (layer / "dir").mkdir()
    assert counted(layers) == (0, 0, 0)
    (upper / "dir").chmod(0o711)
    assert counted(layers) == (0, 1, 0)


def test_other_type(layers):
    upper, lower = layers
    write(lower / "was-dir" / "below")
    write(lower / "was-file")
    write(upper / "was-dir")
    write(upper / "was-file" / "below")
    assert counted(layers) == (1, 2, 0)


def test_removed_and_made_again(layers):
    """Opaque: the lower names that are missing in it are deleted, at any depth."""
    upper, lower = layers
    for name in ("dir/kept", "dir/gone", "dir/sub/gone-too"):
        write(lower / name)
    write(upper / "dir" / "kept")
    write(upper / "dir" / "new")
    (upper / "dir" / "sub").mkdir()
    os.setxattr(upper / "dir", "user.overlay.opaque", b"y")
    assert counted(layers) == (1, 1, 2)


@pytest.mark.parametrize("value", [b"old", b"/at/old"])
def test_renamed_directory(layers, value):
    upper, lower = layers
    write(lower / "at" / "old" / "same")
    write(lower / "at" / "old" / "changed")
    write(upper / "at" / "new" / "changed")
    write(upper / "at" / "new" / "added")
    whiteout(upper / "at" / "old")
    os.setxattr(upper / "at" / "new", "user.overlay.redirect", value)
    assert counted(layers) == (2, 1, 1)


def test_names_are_bytes(layers):
    with open(os.fsencode(layers[0]) + b"/\xff\n", "w"):
        pass
    assert counted(layers) == (1, 0, 0)


def test_what_is_hidden_is_not_there(layers):
    """The state directory: a command may make one of that name in the tree, and replace its parent."""
    upper, lower = layers
    write(lower / "s" / "state" / "sandbox")
    (upper / "s" / "state").mkdir(parents=True)
    os.setxattr(upper / "s" / "state", "user.overlay.opaque", b"y")
    assert counted(layers, lower / "s" / "state") == (1, 0, 0)
    (upper / "s" / "state").rmdir()
    os.setxattr(upper / "s", "user.overlay.opaque", b"y")
    assert counted(layers, lower / "s" / "state") == (0, 0, 0)
