"""Whose name new objects get.

Layers are accessed with the mounter's rights, new objects belong to the caller: the
same as fs/overlayfs, which overrides the credentials and sets only fsuid and fsgid.
The umask is set alike, so that the upper file system itself does the arithmetic of
mode, umask and default ACL.

Switching costs two system calls, so the last caller's ids stay in force; the
capabilities stay too (SECBIT_NO_SETUID_FIXUP).
"""

from __future__ import annotations

import os

from voile.linux import creds


class Creds:
    """The ids that the daemon's thread creates objects with."""

    __slots__ = ("_uid", "_gid", "_umask", "_own_uid", "_own_gid", "_switches")

    def __init__(self) -> None:
        self._own_uid = self._uid = os.geteuid()
        self._own_gid = self._gid = os.getegid()
        self._umask = -1
        self._switches = creds.has_cap(creds.CAP_SETUID) and creds.has_cap(creds.CAP_SETGID)
        if self._switches:
            try:
                creds.keep_caps_on_setfsuid()
            except OSError:
                self._switches = False

    def become(self, uid: int, gid: int, umask: int = 0) -> None:
        """New objects belong to `uid` and `gid`, and `umask` is applied to their mode."""
        if self._switches:
            if gid != self._gid:
                creds.setfsgid(gid)
                self._gid = gid
            if uid != self._uid:
                creds.setfsuid(uid)
                self._uid = uid
        if umask != self._umask:
            os.umask(umask)
            self._umask = umask

    def mounter(self) -> None:
        """New objects belong to the mounter, with exactly the mode that is asked for."""
        self.become(self._own_uid, self._own_gid)
