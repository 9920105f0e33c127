"""What all commands share: settings, error handling, and consoles."""

import select
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import typer
from rich.console import Console
from typer.core import TyperCommand

from cfpo_verl.errors import UserError

# Columns of a table if the output is not a terminal.
WIDTH = 160


class Command(TyperCommand):
    """A command that prints a user's error as one message, and a bug as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with an error's status, with 130 after Ctrl-C, with 1 after a bug."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"{ctx.command_path}: {error}", err=True)
            raise SystemExit(error.exit_status) from None
        except KeyboardInterrupt:
            typer.echo(f"{ctx.command_path}: interrupted", err=True)
            raise SystemExit(130) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception:
            if _reader_is_gone():
                raise  # typer exits silently
            traceback.print_exc()
            typer.echo(
                f"{ctx.command_path}: this is a bug in cfpo_verl. Please report it with the traceback above and the "
                "command line",
                err=True,
            )
            raise SystemExit(1) from None


def _reader_is_gone() -> bool:
    """Return whether the program that reads our output has exited, as `head` does after its last line."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)  # POLLERR is always reported
    return any(event & select.POLLERR for _, event in outputs.poll(0))


class App(typer.Typer):
    """A typer application with our settings."""

    def __init__(self, help: str | None = None, **settings: Any) -> None:
        """Create an application.

        Args:
            help: First paragraph of `--help`.
            settings: Other arguments of typer.Typer.
        """
        super().__init__(
            help=help, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **settings
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[..., Any]:
        """Add a command with the error handling of `Command`."""
        return super().command(name, **{"cls": Command, **settings})


def epilog(*examples: str, exit_status: str | None = None) -> str:
    """Return the end of a help text.

    Args:
        examples: Command lines. Each is printed on one line, however long, so that it can be copied.
        exit_status: Meaning of each exit status, if there are others than 0 for success.
    """
    lines = ["\b", "Examples:" if len(examples) > 1 else "Example:", *(f"  {example}" for example in examples)]
    return "\n".join([*lines, *(["", f"Exit status: {exit_status}."] if exit_status else [])])


def wide_console(file: TextIO | None = None) -> Console:
    """Return a console for tables, as wide as the terminal, or `WIDTH` columns if there is none.

    Args:
        file: Output stream; standard output if None.
    """
    file = file or sys.stdout
    return Console(file=file, width=None if file.isatty() else WIDTH)


def progress_console() -> Console:
    """Return a console on standard error, where progress is shown, so that standard output has results only."""
    return Console(file=sys.stderr)
