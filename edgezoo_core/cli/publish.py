"""publish: a converted file to a repo of the hub, with a card that says what it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.errors import plain

if TYPE_CHECKING:
    from edgezoo_core.publishing import Publication
    from edgezoo_core.publishing.upload import Published


@click.command("publish")
@click.argument("file", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@click.option("--pull-request", is_flag=True, help="Propose it to the owner of ORG/NAME.")
@click.option("--private/--public", default=None, help="Who may see a repo that is made for it.")
@click.option("--licence", metavar="NAME", help="The source's licence, where it names none.")
@click.option(
    "--accept-licence",
    is_flag=True,
    help="You meet the condition that the licence sets, or have its owner's permission.",
)
@click.option("--base-model", metavar="ORG/NAME", help="What a local folder descends from.")
@click.option(
    "--benchmark",
    type=click.Path(path_type=Path),
    help="What `edgezoo bench --json` printed, for the card.",
)
@click.option(
    "--uncertified",
    is_flag=True,
    help="Publish what has no certificate, or what LiteRT-LM would refuse; the card says so.",
)
@click.option("--force", is_flag=True, help="Replace files of other content that are there.")
@click.option("--dry-run", is_flag=True, help="Show the card and the files; ask no hub.")
@json_option
@verbose_option
def publish_command(
    file: Path,
    repo: str,
    pull_request: bool,
    private: bool | None,
    licence: str | None,
    accept_licence: bool,
    base_model: str | None,
    benchmark: Path | None,
    uncertified: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Publish ARTIFACT, a converted file with its manifest, to ORG/NAME on the hub.

    A .tflite goes with its bundle, a .litertlm alone; both with their manifest, the source's
    licence, and a card with source, recipe, certificate and the commands that make it again.
    """
    with working(verbose=verbose) as stages:
        from edgezoo_core import publishing
        from edgezoo_core.publishing import upload

        decisions = publishing.Decisions(
            licence, accept_licence, base_model, benchmark, uncertified
        )
        ready = publishing.prepare(file, repo, decisions, is_offline=dry_run, progress=stages)
        done = None
        if not dry_run:
            done = upload.publish(
                repo,
                ready.files,
                ready.message,
                pull_request=pull_request,
                private=private,
                force=force,
                progress=stages,
            )
        stages.done()
    if as_json:
        _print_json(ready, done)
    else:
        _print(ready, done)


def _print_json(ready: Publication, done: Published | None) -> None:
    print_json(
        {
            "repo": ready.repo,
            "licence": asdict(ready.licence),
            "files": [
                {"name": f.name, "size_bytes": f.size_bytes, "sha256": f.sha256}
                for f in ready.files
            ],
            "published": asdict(done) if done else None,
            "card": ready.card,
        }
    )


def _print(ready: Publication, done: Published | None) -> None:
    if done is None:
        click.echo(ready.card)
    rows: list[tuple[str, ...]] = [(f.name, f"{f.size_bytes:,}", f.sha256) for f in ready.files]
    click.echo(table(rows, ("FILE", "BYTES", "SHA256")))
    if done is None:
        click.echo("Nothing was sent: --dry-run.", err=True)
    elif not done.sent:
        click.echo(f"\n{done.repo} has these very files already: nothing was sent")
    else:
        what = "pull request" if done.is_pull_request else "commit"
        click.echo(f"\n{what}  {plain(done.url)}")
