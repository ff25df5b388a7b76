"""run: a converted file answers."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from edgezoo_core.cli.console import Stages, working
from edgezoo_core.cli.options import json_option, print_json, verbose_option

if TYPE_CHECKING:
    from edgezoo_core.chat import Chat, Engine, Manner

#: Exit code of a process that Ctrl-C ended, as shells count.
INTERRUPTED = 130


@click.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--prompt", help="What to say to the model; without it, a chat begins.")
@click.option("--system", help="What the model is told before the first turn.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without chat template.")
@click.option(
    "--engine",
    type=click.Choice(["litert-lm", "interpreter"]),
    help="What runs FILE.  [default: LiteRT-LM where it is installed and there is a bundle]",
)
@click.option(
    "--tokenizer",
    metavar="PATH|REPO",
    help="A folder or hub repo, for the interpreter; default: the source.",
)
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
@click.pass_context
def run_command(
    ctx: click.Context,
    file: Path,
    prompt: str | None,
    system: str | None,
    raw: bool,
    engine: str | None,
    tokenizer: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Let FILE, a converted .tflite or .litertlm, answer.

    In a chat, Ctrl-C ends an answer and Ctrl-D the chat.
    """
    if as_json and prompt is None:
        raise click.UsageError("--json needs --prompt")
    with working(verbose=verbose) as stages:
        from edgezoo_core.chat import Manner
        from edgezoo_core.runtime import Sampler

        manner = Manner(Sampler(temperature, top_k, seed), max_tokens, system, raw)
        opened = _open(file, cast("Engine | None", engine), tokenizer, manner, stages)
        with closing(opened) as chat:
            stages.done()
            if prompt is None:
                _converse(chat)
            elif not _answer(chat, prompt, as_json=as_json):
                ctx.exit(INTERRUPTED)


def _open(
    file: Path, engine: Engine | None, tokenizer: str | None, manner: Manner, stages: Stages
) -> Chat:
    from edgezoo_core import artifact, text_sources
    from edgezoo_core import chat as chats
    from edgezoo_core import tokenizer as tokenizers
    from edgezoo_core.runtime import Session

    converted = artifact.read(file)
    if engine is None:
        engine = "interpreter" if tokenizer else chats.suited(converted)
    if engine == "litert-lm":
        stages("loading the bundle")
        return chats.LiteRTLMChat(chats.bundle_of(converted), manner)
    stages("loading the tokenizer")
    folder = (
        text_sources.tokenizer_folder(tokenizer, stages)
        if tokenizer
        else text_sources.text_folder(converted, stages)
    )
    text = tokenizers.load(folder)
    stages("loading the model")
    return chats.InterpreterChat(Session(file), text, manner)


def _converse(chat: Chat) -> None:
    while True:
        click.echo("> ", nl=False, err=True)
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:  # what was typed is forgotten
            click.echo(err=True)
            continue
        if not line:
            click.echo(err=True)
            return
        if line.strip():
            _answer(chat, line.rstrip("\n"))


def _answer(chat: Chat, text: str, *, as_json: bool = False) -> bool:
    """Prints an answer as it comes; returns whether it came to its end."""
    began = time.perf_counter()
    pieces: list[str] = []
    is_whole = True
    with closing(chat.say(text)) as answer:
        try:
            for piece in answer:
                pieces.append(piece)
                if not as_json:
                    click.echo(piece, nl=False)
        except KeyboardInterrupt:
            is_whole = False
    seconds = time.perf_counter() - began
    told = chat.told()
    if as_json:
        print_json(
            {
                "engine": told.engine,
                "prompt_tokens": told.prompt_tokens,
                "answer_tokens": told.answer_tokens,
                "text": "".join(pieces),
                "cut": told.cut,
                "seconds": round(seconds, 3),
            }
        )
    else:
        click.echo()
    cut = f": {told.cut}" if told.cut else ""
    click.echo(f"{told.count} tokens in {seconds:.1f} s with {told.engine}{cut}", err=True)
    return is_whole
