"""The program `vectorfleet`: its commands under one roof, and one rule for errors.

Whatever a user can cause ends in one line on stderr and an exit code, never in a traceback; a traceback is a defect of ours.
"""

from __future__ import annotations

from typing import Any

import click

from vectorfleet._attempts import NOT_REACHED
from vectorfleet._channel import CORE_SAYS
from vectorfleet._version import __version__
from vectorfleet.cli.backups import backup, restore
from vectorfleet.cli.certs import certs
from vectorfleet.cli.collections import create, drop
from vectorfleet.cli.debugging import debug, tune
from vectorfleet.cli.keys import keys
from vectorfleet.cli.loading import load
from vectorfleet.cli.points import count, delete, get
from vectorfleet.cli.rows import FileError
from vectorfleet.cli.searching import search
from vectorfleet.cli.sizing import sizing
from vectorfleet.cli.status import status
from vectorfleet.cli.traces import traces
from vectorfleet.cli.up import up
from vectorfleet.errors import VectorfleetError
from vectorfleet.local.failure import LocalClusterError

INTERRUPTED = 130


class Program(click.Group):
    """A group of commands whose failures are told in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (VectorfleetError, LocalClusterError, FileError) as error:
            raise click.ClickException(one_line(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def one_line(error: Exception) -> str:
    """What is told of an error."""
    if isinstance(error, VectorfleetError) and error.reason == "UNREACHABLE":
        where, _, told = error.message.partition(NOT_REACHED)
        meaning, known, _ = told.partition(CORE_SAYS)
        if known:
            return f"{where}{NOT_REACHED}{meaning}"
        return f"{where} cannot be reached: is a cluster running there? `vectorfleet up` starts one"
    return " ".join(str(error).split())


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed (one line on stderr says why), 2 wrong usage, 130 interrupted.",
)
@click.version_option(__version__, prog_name="vectorfleet")
def main() -> None:
    """A sharded vector search cluster: start one, load it, ask it."""


for _command in (
    up,
    load,
    search,
    status,
    create,
    drop,
    get,
    delete,
    count,
    backup,
    restore,
    keys,
    sizing,
    certs,
    traces,
    tune,
    debug,
):
    main.add_command(_command)
