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
def serve(config: Path | None) -> None:
    """Answer the admission webhooks of a cluster."""
    # kopf takes a second to import, which the other commands need not spend.
    from tagpin.app.serve import serve as run  # noqa: PLC0415
    from tagpin.app.wiring import read_settings  # noqa: PLC0415

    settings = read_settings(config)
    configure(settings.log_level, settings.log_format)
    run(settings)
