"""Errors a user can act on: one line that names the file or option, and the fix."""

import functools
import sys
from collections.abc import Callable


class VceError(Exception):
    """A problem with an input, an option or the machine; its message is one line naming the culprit and the fix."""


def one_line_errors(main: Callable) -> Callable:
    """Decorate a program's entry point: a `VceError` or a full disk becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except VceError as error:
            sys.exit(_complain(str(error)))
        except OSError as error:
            sys.exit(_complain(f"{error.filename or 'file system'}: {error.strerror or error}"))

    return wrapper


def _complain(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
