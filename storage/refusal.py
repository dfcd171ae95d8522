"""What a failed system call means to the one who asked."""

import errno
import os

from ..actors.errors import (
    DataLoss,
    InvalidArgument,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
    Unknown,
)


def refusal_of(error: OSError, what: str) -> Refusal:
    """The answer that a failed system call means for the one who asked."""
    text = f"{what}: {os.strerror(error.errno or 0)}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EMFILE | errno.ENFILE | errno.EFBIG:
            return ResourceExhausted(text)
        case errno.EPERM | errno.EACCES | errno.EROFS:
            return PermissionDenied(text)
        case errno.EIO | errno.EUCLEAN:
            return DataLoss(text)
        case (
            errno.ENOTDIR
            | errno.ELOOP
            | errno.ENAMETOOLONG
            | errno.EEXIST
            | errno.ENOENT
            | errno.EINVAL
            | errno.E2BIG
            | errno.ERANGE
            | errno.EISDIR
            | errno.EMLINK
        ):
            return InvalidArgument(text)
        case _:
            return Unknown(text)
