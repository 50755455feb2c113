"""The errors a user can meet, and the exit code of each.

    SamestepError            1
    |- NotFinite             1   a loss or a gradient is NaN or infinite
    |- RecipeError           2   the recipe or the command line is wrong
    |- DataError             3   the data cannot be used
    |- ClusterError          4   the machine, a replica or the network failed
    |  |- PeerLost           4   another replica failed first; never the cause itself
    |  `- Corrupted          4   what a replica holds has changed by itself
    |- Stopped              75   on request, with a checkpoint (130 after Ctrl-C)
    `- VerifyError           5   verify, audit or a gate said no

A message is one line: what was asked, what is true, what to do next.
"""


class SamestepError(Exception):
    """Base of every error that is shown as one line and no traceback."""

    exit_code = 1
    remote_traceback = ""  # of the replica where it happened; shown with --debug
    of_all = False  # whether all replicas raise it alike, so that none of them is named
    passing = False  # whether a fresh process is likely to be spared it


class NotFinite(SamestepError):
    """what: in a few words, what is not finite. lane: the one whose loss it is; None: the norm of the gradient."""

    of_all = True
    what = ""
    lane: int | None = None


class RecipeError(SamestepError):
    exit_code = 2


class DataError(SamestepError):
    exit_code = 3


class ClusterError(SamestepError):
    exit_code = 4


class PeerLost(ClusterError):
    """Another replica went away. Its own failure is the cause and is shown instead."""


class Corrupted(ClusterError):
    """A bit has flipped, or the same arithmetic gave two results. Only the replica that raises it has the fault."""

    passing = True


class Stopped(SamestepError):
    """The run ended because it was asked to; it can be resumed."""

    exit_code = 75


class VerifyError(SamestepError):
    exit_code = 5
