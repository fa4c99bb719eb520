"""Access times follow the mount options, as on kernel overlayfs, whatever the upper's own mount is set to."""

import os
import subprocess
import time

import pytest

OLD = 946684800 * 10**9

OPTIONS = ("", "ro", "noatime", "nodiratime", "strictatime", "strictatime,nodiratime")


def read(point):
    for name in "upper-file", "lower-file":
        (point / name).read_bytes()
    for name in "upper-dir", "lower-dir":
        os.listdir(point / name)


def times(layers):
    """What reading sets: of which objects, at first and when it has been set already."""
    real = [layers.upper / "upper-file", layers.upper / "upper-dir"]
    real += [layers.lowers[0] / "lower-file", layers.lowers[0] / "lower-dir"]
    for path in real:
        os.utime(path, ns=(OLD, path.stat().st_mtime_ns))
    read(layers.point)
    first = [path.stat().st_atime_ns for path in real]
    time.sleep(0.02)  # longer than the kernel's clock ticks
    read(layers.point)
    # Not of the directory: voile lists it from memory, which strictatime would see.
    again = real[0].stat().st_atime_ns != first[0]
    return {path.name: at != OLD for path, at in zip(real, first)}, again


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options or "default")
@pytest.mark.parametrize("below", ["relatime", "noatime", "strictatime"])
def test_access_times(layers, kernel_overlay, voile_overlay, options, below):
    found = []
    for make in kernel_overlay, voile_overlay:
        made = layers()
        subprocess.run(["mount", "--bind", made.base, made.base], check=True)
        try:
            subprocess.run(["mount", "-o", f"remount,bind,{below}", made.base], check=True)
            (made.upper / "upper-file").write_text("x")
            (made.lowers[0] / "lower-file").write_text("x")
            (made.upper / "upper-dir").mkdir()
            (made.lowers[0] / "lower-dir").mkdir()
            overlay = make(made)
            mount = mount_kernel if make is kernel_overlay else type(overlay).mount
            mount(overlay, options)
            found.append(times(made))
            overlay.umount()
        finally:
            subprocess.run(["umount", made.base], check=True)
    assert found[0] == found[1]


def mount_kernel(overlay, options):
    overlay.mount("ro" if options == "ro" else "")
    words = [word for word in options.split(",") if word and word != "ro"]
    if words:
        subprocess.run(["mount", "-o", ",".join(["remount,bind", *words]), overlay.point], check=True)
