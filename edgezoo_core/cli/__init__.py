"""The command `edgezoo`: stdout is data, stderr is talk."""

from __future__ import annotations

import importlib
import signal
import sys
from contextlib import redirect_stdout
from typing import Any

import click

from edgezoo_core import __version__
from edgezoo_core.cli import process
from edgezoo_core.cli.terminal import tamed
from edgezoo_core.errors import EdgezooError, of_system, tame

#: Command -> the module that defines it under its name. A command is imported when it is asked for,
#: so that `edgezoo list` pays for nothing else.
COMMANDS = {
    "list": "listing",
    "info": "listing",
    "plugins": "plugins",
    "install": "install",
    "new-plugin": "new_plugin",
    "author": "author",
    "plan": "plan",
    "convert": "convert",
    "batch": "batch",
    "verify": "verify",
    "reproduce": "reproduce",
    "bundle": "bundle",
    "check": "check",
    "inspect": "inspect",
    "run": "run",
    "bench": "bench",
    "evaluate": "evaluate",
    "publish": "publish",
    "doctor": "doctor",
    "cache": "cache",
}
#: Those that hand a file to native code in their own process, which it may crash.
_NATIVE = {"run", "evaluate"}


class _Failure(click.ClickException):
    """An EdgezooError on its way out: what, and how to mend it. Exit code 1."""

    def __init__(self, error: EdgezooError) -> None:
        super().__init__(error.message)
        self.remedy = error.remedy

    def show(self, file: Any = None) -> None:
        click.echo(tame(f"Error: {self.message}\nFix: {self.remedy}"), err=True)


class _Interrupted(click.ClickException):
    """Ctrl-C. The exit code is the one that shells give."""

    exit_code = 128 + signal.SIGINT

    def __init__(self) -> None:
        super().__init__("Aborted!")

    def show(self, file: Any = None) -> None:
        click.echo(self.message, err=True)


class _Commands(click.Group):
    """The one error boundary, and the lazy list of commands."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        process.complete_streams()
        # Whoever passes arguments has a process that is not ours to copy.
        if not (args or kwargs) and _NATIVE.intersection(sys.argv[1:2]):
            _tell_of_crash(process.survive_crashes())
        with process.ending_in_order():
            try:
                return super().main(*args, **kwargs)
            except (OSError, MemoryError) as e:
                told = of_system(e)
                if told is None:
                    raise
                _Failure(told).show()
                sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgezoo_core.cli.{COMMANDS[name]}")
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with redirect_stdout(tamed(sys.stdout)):
                return super().invoke(ctx)
        except EdgezooError as e:
            raise _Failure(e) from e
        except (KeyboardInterrupt, click.Abort) as e:
            raise _Interrupted from e


def _tell_of_crash(code: int | None) -> None:
    """Ends the parent of a process that may have crashed; returns in that process."""
    if code is None:
        return
    if code < 0:
        _Failure(
            EdgezooError(
                f"native code crashed ({signal.Signals(-code).name}) while it ran the model",
                remedy="run: edgezoo check FILE; a file that passes there, report with the versions"
                " of edgezoo doctor",
            )
        ).show()
    sys.exit(1 if code < 0 else code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgezoo")
def main() -> None:
    """Takes open language models from a Hugging Face checkpoint to a quantized .tflite."""
