"""metacopy=on and off by turns, with the kernel's overlayfs and with voile."""

import errno
import json
import os
import subprocess

from support.users import in_child

ON = "metacopy=on,redirect_dir=on"
NAMES = ("small", "one block", "large", "empty", "moved", "linked", "data too", "untouched")
SIZES = {"small": 100, "one block": 4096, "large": 700_000, "empty": 0}


def build(made):
    for name in NAMES:
        (made.lowers[0] / name).write_bytes(b"x" * SIZES.get(name, 10_000))


def change(point):
    for name in NAMES[:-1]:
        os.chmod(point / name, 0o600)
    os.rename(point / "moved", point / "elsewhere")
    os.link(point / "linked", point / "link")
    os.close(os.open(point / "data too", os.O_WRONLY))


def outcomes(point):
    """What stat, open and unlink say to each name."""
    found = {}
    for name in (*NAMES, "elsewhere", "link"):
        for call in (os.stat, lambda path: os.close(os.open(path, os.O_RDONLY)), os.unlink):
            try:
                call(point / name)
                code = "works"
            except OSError as exc:
                code = errno.errorcode[exc.errno]
            found.setdefault(name, []).append(code)
    return found


def test_without_metacopy_they_are_refused(layers, kernel_overlay, voile_overlay):
    """Whoever has written them, and whoever looks; what has its data is shown."""
    answers = {}
    for writer in (kernel_overlay, voile_overlay):
        for reader in (kernel_overlay, voile_overlay):
            made = layers()
            build(made)
            overlay = writer(made)
            point = overlay.mount(ON)
            in_child(lambda point=point: change(point))
            overlay.umount()
            overlay = reader(made)
            point = overlay.mount("metacopy=off,redirect_dir=on")
            found = in_child(lambda point=point: outcomes(point))
            overlay.umount()
            # An empty file has no data to lose: voile shows it.
            assert found.pop("empty") in (["EPERM"] * 3, ["works"] * 3)
            answers[writer, reader] = found
    expected = answers[kernel_overlay, kernel_overlay]
    assert expected["small"] == expected["one block"] == expected["elsewhere"] == ["EPERM"] * 3
    assert expected["data too"] == expected["untouched"] == ["works"] * 3
    assert all(found == expected for found in answers.values()), answers


def test_back_to_metacopy(layers, voile_overlay):
    """A mount without it does no harm to them."""
    made = layers()
    build(made)
    for options in (ON, "metacopy=off,redirect_dir=on", ON):
        overlay = voile_overlay(made)
        point = overlay.mount(options)
        if options != ON:
            in_child(lambda point=point: os.listdir(point))
        elif not (made.upper / "small").exists():
            in_child(lambda point=point: change(point))
        else:
            sizes = {"elsewhere": 10_000, "link": 10_000, "data too": 10_000} | SIZES
            for name, size in sizes.items():
                assert in_child((point / name).read_bytes) == b"x" * size
        overlay.umount()


def test_status_and_data_only_layers(layers, voile_overlay):
    made = layers(datas=2)
    overlay = voile_overlay(made)
    point = overlay.mount("metacopy=on")
    words = [*overlay.program, "status", "--json", point]
    status = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    assert status["metacopy"] is True
    assert status["datadir"] == [str(path) for path in made.datas]
    overlay.umount()
