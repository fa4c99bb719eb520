"""Which error probe a volatile mount gets: the best that can be made, or the one that `probe=` names."""

from __future__ import annotations

from voile.volatile import probe
from voile.volatile.policy import AUTO, INODE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.volatile.probe import Probe


def create(kind: str, workdir_fd: int, userxattr: bool, limit: int) -> Probe:
    """Make a probe of one of policy.PROBES; `limit`: how many files an "inode" one may hold open.

    Raises as `probe.create`: never is an unseen error a reason to go on to the next kind.
    """
    reason = None
    if kind != INODE:
        try:
            return probe.create(workdir_fd, userxattr, None if kind == AUTO else kind)
        except probe.ProbeUnavailable as error:
            if kind != AUTO:
                raise
            reason = error.strerror
    from voile.volatile import inode_probe

    return inode_probe.create(workdir_fd, min(limit, inode_probe.LIMIT), reason)
