"""`tagpin serve`."""

from pathlib import Path

import click

from tagpin.app.logs import configure


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The YAML file with the settings; TAGPIN_… variables override its keys.",
)
@click.option(
    "--client-ca",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Only clients with a certificate of these CAs (PEM) may call; overrides clientCaFile.",
)
def serve(config: Path | None, client_ca: Path | None) -> None:
    """Answer the admission webhooks of a cluster."""
    # kopf takes a second to import, which the other commands need not spend.
    from tagpin.app.serve import serve as run  # noqa: PLC0415
    from tagpin.app.wiring import read_settings  # noqa: PLC0415

    options = {} if client_ca is None else {"clientCaFile": str(client_ca)}
    settings = read_settings(config, options=options)
    configure(settings.log_level, settings.log_format)
    run(settings)
