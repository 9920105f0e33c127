"""The base class of all errors that a user can fix, and helpers for the text of an error."""


class UserError(Exception):
    """An error the user can fix: invalid input, a wrong option, a broken file, an unsuitable environment.

    The message gives the value, the rule it breaks and a remedy; an error about a file also names the file, and the
    line or row if there is one. Commands print it without a traceback and catch no other exception, so that a bug never
    looks like a mistake of the user. Every error meant for users derives from this class, and no other error does.

    Mathematical functions raise ValueError or TypeError for wrong shapes and types, since only a bug can cause them.
    """

    # Exit status of the command: 2 if nothing was started; a subclass for failures after the start sets 1.
    exit_status = 2


def last_line(text: object) -> str:
    r"""Return the last line of an error. If the text is another process's traceback, that line is the error itself.

    Example:
        >>> last_line(ValueError("first\nsecond"))
        'second'
        >>> last_line(ValueError())
        'ValueError()'
    """
    return (str(text).strip().splitlines() or [repr(text)])[-1]


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error, or its class name if the text is empty.

    Example:
        >>> first_line(OSError("no space\nhint"))
        'no space'
        >>> first_line(OSError())
        'OSError'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
