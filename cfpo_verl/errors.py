"""The one base of all errors that a user can mend, and what counts of the text of an error."""


class UserError(Exception):
    """The user can mend it: an input, an option, a file, an environment.

    The message names the value, the rule and the way out; an error about a file names the file too, and the line or row
    where there is one. Commands show it without a traceback and catch nothing else, so a bug never looks like a
    mistake of the user's. Derive from this class every error that is meant for users, and no other.

    A function of pure mathematics raises ValueError or TypeError as usual for wrong shapes or types: only a bug gets
    it there.
    """

    # Of the command that stops with it: 2 where nothing was started, 1 in a subclass for what fails on the way.
    exit_status = 2


def last_line(text: object) -> str:
    r"""Return the last line of an error, where a whole traceback of another process ends with what counts.

    Example:
        >>> last_line(ValueError("first\nsecond"))
        'second'
        >>> last_line(ValueError())
        'ValueError()'
    """
    return (str(text).strip().splitlines() or [repr(text)])[-1]


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error, or its class if it says nothing.

    Example:
        >>> first_line(OSError("no space\nhint"))
        'no space'
        >>> first_line(OSError())
        'OSError'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
