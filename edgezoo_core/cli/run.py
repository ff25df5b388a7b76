"""run: a converted file answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, verbose_option


@click.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="What to say to the model.")
@click.option("--tokenizer", metavar="PATH|REPO", help="A folder or hub repo; default: the source.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without chat template.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    default=40,
    show_default=True,
    help="Choose among so many; 0 means all.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@verbose_option
def run_command(
    file: Path,
    prompt: str,
    tokenizer: str | None,
    raw: bool,
    max_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Let FILE, a converted .tflite, answer a prompt with the LiteRT interpreter."""
    with working(verbose=verbose) as stages, ExitStack() as stack:
        stages("loading the tokenizer")
        from edgezoo_core import artifact, sources
        from edgezoo_core import tokenizer as tokenizers
        from edgezoo_core.runtime import Sampler, Session

        converted = artifact.read(file)
        folder = (
            sources.tokenizer_folder(tokenizer, stages)
            if tokenizer
            else sources.text_folder(converted, stages)
        )
        text = tokenizers.load(folder)
        stages("loading the model")
        session = stack.enter_context(Session(file))
        stages.done()
        ids = text.prompt(prompt, chat=not raw)
        began = time.perf_counter()
        answer: list[int] = []
        pieces: list[str] = []

        def tokens() -> Iterator[int]:
            sampler = Sampler(temperature, top_k, seed)
            for token in session.generate(ids, max_tokens, sampler, text.stop, text.size):
                answer.append(token)
                yield token

        for piece in tokenizers.stream(text, tokens()):
            pieces.append(piece)
            if not as_json:
                click.echo(piece, nl=False)
        seconds = time.perf_counter() - began
        if as_json:
            print_json(
                {
                    "prompt_tokens": ids,
                    "answer_tokens": answer,
                    "text": "".join(pieces),
                    "seconds": round(seconds, 3),
                }
            )
        else:
            click.echo()
        click.echo(f"{len(answer)} tokens in {seconds:.1f} s", err=True)
