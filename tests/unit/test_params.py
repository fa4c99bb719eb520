"""Mount options: the kernel's escapes, conflicts, and what callers of mount helpers really send."""

import os

import pytest

from voile.linux import mount
from voile.overlay.params import Params, UsageError, escape, parse, split_options

LAYERS = b"lowerdir=/l,upperdir=/u,workdir=/w"


def checked(*options):
    params = Params()
    for each in options:
        parse(each, params)
    return params.check()


@pytest.mark.parametrize(
    "value, layers",
    [
        (b"/a", [b"/a"]),
        (b"/a:/b:/c", [b"/a", b"/b", b"/c"]),
        (rb"/a\:b:/c", [b"/a:b", b"/c"]),
        (rb"/a\,b:/c\\d", [b"/a,b", rb"/c\d"]),
        (rb"/a\b", [b"/ab"]),
        (b"/\xff\xfe", [b"/\xff\xfe"]),
    ],
)
def test_lowerdir(value, layers):
    assert checked(b"lowerdir=" + value).lowerdir == layers


@pytest.mark.parametrize(
    "path", [b"/plain", b"/co:lon", b"/com,ma", b"/back\\slash", rb"/\:\,", b"/sp ace\n"]
)
def test_escape_is_undone(path):
    params = checked(b"lowerdir=%b:%b,upperdir=%b,workdir=/w" % ((escape(path),) * 3))
    assert params.lowerdir == [path, path]
    assert params.upperdir == path


@pytest.mark.parametrize(
    "value, lowers, datas",
    [
        (b"/a::/d", [b"/a"], [b"/d"]),
        (b"/a:/b::/d::/e", [b"/a", b"/b"], [b"/d", b"/e"]),
        (rb"/a\::/b::/d\:", [b"/a:", b"/b"], [b"/d:"]),
        (rb"/a\:\:/d", [b"/a::/d"], []),
    ],
)
def test_data_only_layers(value, lowers, datas):
    params = checked(b"lowerdir=" + value)
    assert (params.lowerdir, params.datadir) == (lowers, datas)


@pytest.mark.parametrize("value", [b"", b"/a:", b":/a", b"::/a", b"/a::", b"/a:::/b", b"/a::/d:/b", b":"])
def test_bad_lowerdir(value):
    with pytest.raises(UsageError, match="lowerdir"):
        parse(b"lowerdir=" + value)


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = checked(b"lowerdir=l/AB:../x,upperdir=u,workdir=w")
    here = bytes(tmp_path)
    assert params.lowerdir == [here + b"/l/AB", here + b"/../x"]
    assert (params.upperdir, params.workdir) == (here + b"/u", here + b"/w")


def test_podman():
    """As podman 4.3 calls its mount program: empty items, a quoted context with commas, fsync=0, private."""
    params = checked(
        b'lowerdir=l/A:l/B,upperdir=/d,workdir=/w,,volatile,context="s:o:c:s0:c1,c2",fsync=0,private,'
    )
    assert params.volatile
    assert len(params.lowerdir) == 2


def test_several_option_strings_later_wins():
    params = checked(LAYERS, b"ro,noatime,xino=on", b"rw,relatime,xino=off")
    assert not params.readonly
    assert params.ms_flags == mount.MS_RELATIME
    assert params.xino == "off"


@pytest.mark.parametrize(
    "options, flags",
    [
        (b"nosuid,nodev,noexec", mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC),
        (b"nosuid,suid,nodev,dev,noexec,exec", 0),
        (b"nosuid,nodev,defaults", 0),
        (b"noatime,strictatime", mount.MS_STRICTATIME),
        (b"user", mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC),
        (b"user=joe,exec", mount.MS_NOSUID | mount.MS_NODEV),
        (b"nodiratime,lazytime,nosymfollow", mount.MS_NODIRATIME | mount.MS_LAZYTIME | mount.MS_NOSYMFOLLOW),
        (b"sync,async,dirsync", mount.MS_DIRSYNC),
        (b"x-systemd.automount,X-mount.mkdir,_netdev,nofail,auto,noauto,comment=hi", 0),
    ],
)
def test_generic_flags(options, flags):
    assert checked(LAYERS, options).ms_flags == flags


@pytest.mark.parametrize(
    "option, words",
    [
        (b"nosuch", "unknown option 'nosuch'"),
        (b"volatil", "unknown option 'volatil'"),
        (b"\xff", "unknown option"),
        (b"ro=1", "takes no value"),
        (b"upperdir", "needs a value"),
        (b"upperdir=", "needs a value"),
        (b"xino=maybe", "'maybe' is not one of"),
        (b"redirect_dir", "is not one of"),
        (b"fsync=sometimes", "'sometimes' is not one of auto, strict, volatile"),
        (b"timeout=long", "not a number of seconds"),
        (b"timeout=-1", "not a number of seconds"),
        (b"timeout=nan", "not a number of seconds"),
        (b"poll=often", "'poll': 'often' is not a number of seconds"),
        (b"errors=panic", "'panic' is not one of continue, remount-ro, shutdown"),
        (b"error_code=5", "'5' is not one of latest, eio"),
        (b"probe=guess", "'guess' is not one of auto, overlay, userns, inode"),
        (b"index=maybe", "'index': 'maybe' is not one of on, off"),
        (b"metacopy=yes", "'yes' is not one of on, off"),
        (b"metacopy", "is not one of on, off"),
        (b"nfs_export=on", "not supported"),
        (b"verity=require", "not supported"),
        (b"uuid=on", "not supported"),
        (b"datadir+=", "needs a value"),
        (b"datadir+=/x,lowerdir+=/y", "cannot follow data-only layers"),
        (b"lowerdir=/x,lowerdir+=/y", "'lowerdir+' cannot follow 'lowerdir'"),
        (b"lowerdir=/x,datadir+=/y", "'datadir+' cannot follow 'lowerdir'"),
        (b'context="a', "quote is not closed"),
    ],
)
def test_refused_by_name(option, words):
    with pytest.raises(UsageError) as caught:
        parse(option)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_off_values_of_what_is_not_supported():
    checked(LAYERS, b"index=off,metacopy=off,nfs_export=off,verity=off,uuid=null,uuid=off,uuid=auto")


@pytest.mark.parametrize(
    "options, fsync",
    [
        (b"", "auto"),
        (b"volatile", "volatile"),
        (b"fsync=volatile", "volatile"),
        (b"fsync=strict", "strict"),
        (b"volatile,fsync=auto", "auto"),
        (b"fsync=0", "volatile"),
        (b"fsync=1", "auto"),
    ],
)
def test_fsync(options, fsync):
    params = checked(LAYERS, options)
    assert params.fsync == fsync
    assert params.volatile == (fsync == "volatile")


@pytest.mark.parametrize(
    "option", [b"errors=remount-ro", b"errors=shutdown", b"probe=inode", b"reuse=auto", b"hold=on"]
)
def test_what_only_a_volatile_mount_has(option):
    checked(LAYERS, b"volatile", option)
    checked(b"lowerdir=/a", option)  # nothing to lose
    with pytest.raises(UsageError, match=f"'{option.decode()}' needs 'volatile'"):
        checked(LAYERS, option)


def test_without_upper_it_is_read_only():
    params = checked(b"lowerdir=/a:/b,workdir=/w,volatile")
    assert params.readonly
    assert params.workdir is None
    assert not params.volatile


def test_missing_directories():
    with pytest.raises(UsageError, match="'lowerdir' is missing"):
        checked(b"upperdir=/u,workdir=/w")
    with pytest.raises(UsageError, match="'workdir' is missing"):
        checked(b"lowerdir=/l,upperdir=/u")


@pytest.mark.parametrize(
    "options, result",
    [
        (b"", "follow"),
        (b"redirect_dir=off", "follow"),
        (b"redirect_dir=on", "on"),
        (b"redirect_dir=nofollow", "nofollow"),
        (b"userxattr", "nofollow"),
        (b"userxattr,redirect_dir=nofollow", "nofollow"),
    ],
)
def test_redirect_dir(options, result):
    assert checked(LAYERS, options).redirect_dir == result


@pytest.mark.parametrize("mode", [b"on", b"follow"])
def test_userxattr_conflicts_with_redirects(mode):
    with pytest.raises(UsageError, match="conflicting options"):
        checked(LAYERS, b"userxattr,redirect_dir=" + mode)


def test_lowerdir_plus_appends_verbatim_paths():
    assert checked(rb"lowerdir+=/a:\b,lowerdir+=/b\,c").lowerdir == [rb"/a:\b", b"/b,c"]


def test_datadir_plus():
    params = checked(b"lowerdir+=/a,datadir+=d,datadir+=/e")
    assert params.lowerdir == [b"/a"]
    assert params.datadir == [os.fsencode(os.getcwd()) + b"/d", b"/e"]
    params = checked(b"lowerdir+=/a,datadir+=/d,lowerdir=/b")
    assert (params.lowerdir, params.datadir) == ([b"/b"], [])
    with pytest.raises(UsageError, match="that is not data-only"):
        checked(b"datadir+=/d,datadir+=/e")


@pytest.mark.parametrize(
    "layers, allowed, refused",
    [
        (LAYERS, [b"", b",redirect_dir=on"], [b",redirect_dir=follow", b",redirect_dir=off"]),
        (b"lowerdir=/a:/b", [b"", b",redirect_dir=off", b",redirect_dir=follow"], []),
    ],
)
def test_metacopy_and_redirect_dir(layers, allowed, refused):
    for more in allowed:
        params = checked(layers, b"metacopy=on" + more)
        assert params.metacopy
        assert params.redirect_dir == "on"
    for more in (*refused, b",redirect_dir=nofollow", b",userxattr"):
        with pytest.raises(UsageError, match="conflicting options"):
            checked(layers, b"metacopy=on" + more)
    assert checked(layers, b"metacopy=off,userxattr").redirect_dir == "nofollow"


def test_timeout():
    assert checked(LAYERS).timeout is None
    assert checked(LAYERS, b"timeout=1.5").timeout == 1.5
    assert checked(LAYERS, b"timeout=0").timeout == 0


def test_source_and_subtype():
    params = checked(LAYERS, rb"fsname=my\,name,subtype=other")
    assert (params.source, params.subtype) == (b"my,name", b"other")


def test_sloppy():
    params = parse(b"nosuch,ro", sloppy=True)
    assert params.readonly


def test_split_options():
    assert list(split_options(rb'a,,b\,c,context="x,y",d,')) == [b"a", rb"b\,c", b'context="x,y"', b"d"]
    assert list(split_options(b'rootcontext="x",d')) == [b'rootcontext="x"', b"d"]
    assert list(split_options(b'fsname="a,b')) == [b'fsname="a', b"b"]
