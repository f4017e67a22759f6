"""Every error that we raise on purpose. A message says what was found, what was expected, where, and what to do next.

PipelineError                 exit 1
├── ConfigError               exit 2: a setting that cannot work
├── InputError                exit 2: a source, path or permission that the user can repair
├── StorageError              exit 1: the store refused or lost something
│   └── TransientError        the same call may succeed later; the only kind that is retried
├── IntegrityError            exit 1: bytes or counts are not what was recorded
├── GateFailed                exit 1: an expectation on the data does not hold
├── StageFailed               exit 1: a stage ended without its artifact
└── ComeAgain                 exit 75: checkpointed after SIGTERM, run again to go on
"""


class PipelineError(Exception):
    exit_code = 1


class ConfigError(PipelineError):
    exit_code = 2


class InputError(PipelineError):
    exit_code = 2


class StorageError(PipelineError):
    pass


class TransientError(StorageError):
    pass


class IntegrityError(PipelineError):
    pass


class GateFailed(PipelineError):
    pass


class StageFailed(PipelineError):
    pass


class ComeAgain(PipelineError):
    exit_code = 75
