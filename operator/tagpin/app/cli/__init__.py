"""The command line; each command has a file of its own."""

import sys

import click

from tagpin import __version__
from tagpin.app.cli.resolve import resolve
from tagpin.app.cli.serve import serve
from tagpin.errors import TagpinError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tagpin")
def cli() -> None:
    """Make a cluster run the image bytes that were meant: tags become digests at admission."""


cli.add_command(resolve)
cli.add_command(serve)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 1."""
    try:
        cli()
    except TagpinError as error:
        click.echo(f"tagpin: {error}", err=True)
        sys.exit(1)
