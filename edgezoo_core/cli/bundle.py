"""bundle: a converted file and its tokenizer in one file that LiteRT-LM runs."""

from __future__ import annotations

from pathlib import Path

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, verbose_option


@click.command("bundle")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tokenizer", metavar="PATH|REPO", help="A folder or hub repo; default: the source.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="A folder, or a path that ends in .litertlm.  [default: beside FILE]",
)
@click.option("--force", is_flag=True, help="Replace what stands there.")
@json_option
@verbose_option
def bundle_command(
    file: Path,
    tokenizer: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Bundle FILE, a converted .tflite, with its tokenizer and chat template for LiteRT-LM."""
    with working(verbose=verbose) as stages:
        from edgezoo_core import artifact, bundle, sources

        converted = artifact.read(file)
        path = bundle.default_path(file, output and output.expanduser())
        if not force:
            bundle.refuse_existing(path)
        texts = (
            sources.tokenizer_folder(tokenizer, stages)
            if tokenizer
            else sources.text_folder(converted, stages)
        )
        built = bundle.build(converted, texts, path, stages)
        stages.done()
    record = built.record(built.path.parent)
    if as_json:
        print_json({"path": str(built.path), **record})
        return
    prompts = record["prompt_templates"]["kind"].replace("_", " ")
    click.echo(f"file            {built.path}")
    click.echo(f"size            {built.size_bytes / 1e6:.1f} MB")
    click.echo(f"sha256          {built.sha256}")
    click.echo(f"tokenizer       {built.tokenizer}")
    click.echo(f"prompts         {prompts}")
    click.echo(f"start token     {'none' if built.start_token is None else built.start_token}")
    click.echo(f"stop tokens     {', '.join(map(str, built.stop_tokens)) or 'none'}")
    click.echo(f"tokens at most  {built.max_num_tokens}")
