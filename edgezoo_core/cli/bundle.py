"""bundle: a converted file and its tokenizer in one file that LiteRT-LM runs."""

from __future__ import annotations

from pathlib import Path

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, verbose_option
from edgezoo_core.errors import plain


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
        from edgezoo_core import artifact, bundle, partial, text_sources, zoo

        artifact.read(file)  # told before a lock is left beside what is no artifact
        with partial.reserved(file.resolve()):
            converted = artifact.read(file)
            path = bundle.default_path(file, output and output.expanduser())
            artifact.refuse_odd(path.resolve())
            if not force:
                bundle.refuse_existing(path)
            texts = (
                text_sources.tokenizer_folder(tokenizer, stages)
                if tokenizer
                else text_sources.text_folder(converted, stages)
            )
            record, _ = zoo.pack(converted, texts, path, stages)
        stages.done()
    if as_json:
        print_json({"path": str(path), **record})
        return
    prompts = record["prompt_templates"]["kind"].replace("_", " ")
    start = "none" if record["start_token"] is None else record["start_token"]
    click.echo(f"file            {plain(str(path))}")
    click.echo(f"size            {record['size_bytes'] / 1e6:.1f} MB")
    click.echo(f"sha256          {record['sha256']}")
    click.echo(f"tokenizer       {record['tokenizer']}")
    click.echo(f"prompts         {prompts}")
    click.echo(f"start token     {start}")
    click.echo(f"stop tokens     {', '.join(map(str, record['stop_tokens'])) or 'none'}")
    click.echo(f"tokens at most  {record['max_num_tokens']}")
