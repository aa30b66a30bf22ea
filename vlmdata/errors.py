"""The errors that a user is meant to read: one line each, with the exit code of the command line."""


class VlmdataError(Exception):
    """What went wrong, where, and what to do, in one readable line."""

    exit_code = 4


class DataError(VlmdataError):
    """The data is at fault: a corrupt part, a stage in which everything failed."""

    exit_code = 1


class InputError(VlmdataError):
    """The user's input is at fault: the recipe, an option, a path, a query."""

    exit_code = 2


class JobError(VlmdataError):
    """A job that the recipe started has failed."""

    exit_code = 3


class MachineError(VlmdataError):
    """The machine or a service is at fault: disk, network, permissions, a bug."""

    exit_code = 4


class OutageError(MachineError):
    """Nearly everything failed in one way: the stage stops, since trying the rest would give the same."""


class RefusedError(VlmdataError):
    """The work is refused: another run holds the dataset, or a gate is shut."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    """What an error says, in one line without the dot; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
