"""The command line. stdout carries the answer alone, everything else goes to stderr."""

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.exceptions import TyperException

from vlmdata.cli import curation, keeping, looking, models  # noqa: F401 - each adds its commands
from vlmdata.cli.application import app, say, state
from vlmdata.errors import InputError, MachineError, VlmdataError

INTERRUPTED = 130


def _interrupted() -> int:
    say("interrupted; the same command goes on where it stopped")
    return INTERRUPTED


def main() -> None:
    """Run the command line; errors become one readable line and an exit code."""
    for name, value in {
        "NO_ALBUMENTATIONS_UPDATE": "1",  # these packages call home otherwise
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }.items():
        os.environ.setdefault(name, value)
    atexit.register(_silence)
    raise SystemExit(guarded(lambda: app(standalone_mode=False)))


def _silence() -> None:
    """The last thing before the interpreter ends: DuckDB's bindings would print which of their objects still live."""
    if not state["debug"]:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def guarded(command: Callable[[], Any]) -> int:
    try:
        result = command()
        code = result if isinstance(result, int) else 0
        return _interrupted() if code == INTERRUPTED else code  # Typer makes this number of Ctrl-C
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except typer.Exit as stop:
        return stop.exit_code
    except TyperException as error:  # of its usage errors
        message = getattr(error, "format_message", error.__str__)()
        if message:  # none where the bare command has shown its help
            say(f"error: {message} (--help lists what there is)")
        return InputError.exit_code
    except VlmdataError as error:
        if state["debug"]:
            raise
        say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        if state["debug"]:
            raise
        where = f": {error.filename}" if error.filename else ""
        say(f"error: {error.strerror or error}{where}")
        return MachineError.exit_code
    except Exception as error:
        if state["debug"]:
            raise
        if type(error).__name__ == "SafetensorError" and "I/O error" in str(error):  # which is its own OSError
            say(f"error: {error}")
        else:
            say(f"error: {type(error).__name__}: {error} (a bug: `vlmdata --debug …` shows where)")
        return MachineError.exit_code
