#!/bin/sh
# System packages that the tests use (voile itself needs Python and the kernel, nothing else).
# Root: what is missing is installed through apt. Otherwise one line says which; the tests skip what needs them.
set -eu
export DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"

missing=""
need() { # need PACKAGE COMMAND-OR-FILE
    case $2 in
    /*) [ -e "$2" ] || missing="$missing $1" ;;
    *) command -v "$2" >/dev/null 2>&1 || missing="$missing $1" ;;
    esac
}

need acl setfacl
need attr setfattr
need btrfs-progs mkfs.btrfs
need dpkg dpkg-deb
need e2fsprogs mkfs.ext4
need eatmydata eatmydata
need fuse-overlayfs fuse-overlayfs
need fuse3 fusermount3
need gcc gcc
need git git
need libc6-dev /usr/include/stdio.h
need linux-libc-dev /usr/include/linux/fuse.h
need mount losetup
need procps ps
need util-linux unshare
need xfsprogs mkfs.xfs
"${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"

[ -n "$missing" ] || exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing system packages:$missing"
    # The list of packages may be absent or old in a fresh container.
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of words
    apt-get install -qq -y --no-install-recommends $missing >/dev/null
else
    echo "missing system packages (tests that need them are skipped):$missing" >&2
fi
