"""Every error that we raise on purpose. A message says what was found, what was expected, where, and what to do next.

PipelineError                 exit 1
├── ConfigError               exit 2: a setting that cannot work
├── InputError                exit 2: a source, path or permission that the user can repair
├── StorageError              exit 1: the store refused or lost something
├── TransientError            exit 1: the same call may succeed later; the only kind that is retried
├── IntegrityError            exit 1: bytes or counts are not what was recorded
├── GateFailed                exit 1: an expectation on the data does not hold
├── StageFailed               exit 1: a stage ended without its artifact
└── ComeAgain                 exit 75: checkpointed after SIGTERM, run again to go on
"""

import errno


class PipelineError(Exception):
    exit_code = 1


class ConfigError(PipelineError):
    exit_code = 2


class InputError(PipelineError):
    exit_code = 2


class StorageError(PipelineError):
    pass


class TransientError(PipelineError):
    pass


class IntegrityError(PipelineError):
    pass


class GateFailed(PipelineError):
    pass


class StageFailed(PipelineError):
    pass


class ComeAgain(PipelineError):
    exit_code = 75


IN_THE_WAY = "A file stands where a folder must be, or the other way round: move it away"
ADVICE = {
    errno.ENOTDIR: IN_THE_WAY,
    errno.EEXIST: IN_THE_WAY,
    errno.EISDIR: IN_THE_WAY,
    errno.ENOENT: "Make it, or correct the path",
    errno.ENAMETOOLONG: "Give a shorter path",
    errno.EACCES: "Give yourself the permission, or another path",
    errno.EPERM: "Give yourself the permission, or another path",
    errno.EROFS: "Give a writable place",
    errno.ENOSPC: "Make space",
    errno.EDQUOT: "Make space",
    errno.EIO: "The disk or the network drive fails: repair it",
}
"""What to do about a fault that the operating system names."""
OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def is_of_the_machine(error: BaseException) -> bool:
    """Whether the machine failed, its memory or a disk, and not the code or the text that met the error."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in OF_THE_MACHINE)


def has_a_sentence(error: BaseException | None) -> bool:
    """Whether it was to be expected, and says itself what to do: an error of ours or the operating system's. A fault in code is neither."""
    return isinstance(error, PipelineError) or (isinstance(error, OSError) and bool(error.strerror))


def said(error: BaseException) -> str:
    """What a person needs of an error: its sentence when it is ours or the operating system's, its kind and text when it is neither."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}. {ADVICE.get(error.errno or 0, 'Repair that')}; the same command goes on from here."
    return f"{type(error).__name__}: {error}"


def exit_code_of(error: OSError) -> int:
    """2 where a path or a permission is the person's to correct, else 1."""
    return 2 if error.errno in ADVICE and error.errno not in OF_THE_MACHINE else 1
