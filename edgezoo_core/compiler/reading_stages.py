"""What workers do with a finished file: let it, or its reference, read a passage; bundle it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core.types import Progress

if TYPE_CHECKING:
    from edgezoo_core.runtime import Runtime


def score(
    progress: Progress,
    path: str,
    runtime: Runtime,
    tokens: Sequence[int],
    start: int,
    folder: str,
    prompts: Sequence[Sequence[int]],
    count: int,
    vocabulary: int | None,
) -> dict[str, Any]:
    """Lets an artifact read a passage, and continue prompts greedily."""
    gc.enable()
    from edgezoo_core.measuring import MemoryWatch
    from edgezoo_core.runtime import Session
    from edgezoo_core.verification import subject
    from edgezoo_core.verification.runs import Passage

    watch = MemoryWatch()
    with watch.watching(), Session(Path(path), runtime=runtime) as session:
        subject.score(session, Passage(tuple(tokens), start), Path(folder), progress)
        answers = subject.continuations(session, prompts, count, vocabulary)
    return {"answers": answers, "memory": asdict(watch.peak)}


def refer(
    progress: Progress,
    job: Mapping[str, Any],
    kind: str,
    adapters: Sequence[tuple[str, float, str]],
    tokens: Sequence[int],
    start: int,
    folder: str,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    vocabulary: int | None,
) -> dict[str, Any]:
    """Lets a reference read a passage, and say where it parts from answers to prompts."""
    gc.enable()
    from edgezoo_core.checkpoint import open_folder
    from edgezoo_core.compiler.job import Job
    from edgezoo_core.measuring import MemoryWatch
    from edgezoo_core.verification import reference
    from edgezoo_core.verification.runs import Passage

    asked = Job.from_json(job)
    checkpoint = open_folder(asked.folder, asked.model.source)
    if adapters:
        from edgezoo_core import adapter_merging

        tied = asked.config.get("tie_word_embeddings")
        checkpoint = adapter_merging.open_adapters(adapters, checkpoint, tied).merged(checkpoint)
    if kind == "transformers":
        forward = reference.by_transformers(checkpoint)
    else:
        from edgezoo_core import model
        from edgezoo_core.compiler.schema import import_litert_torch
        from edgezoo_core.compiler.stages import load_plugin

        import_litert_torch()
        authored = model.build(load_plugin(asked), asked.model, checkpoint, asked.config)
        forward = reference.by_author(authored.module, authored.weights)
    watch = MemoryWatch()
    same = []
    with watch.watching():
        reference.score(forward, Passage(tuple(tokens), start), Path(folder))
        for prompt, answer in zip(prompts, answers, strict=True):
            read = (*prompt, *answer[:-1])
            chosen = reference.choices(forward, read, len(prompt), vocabulary)
            pairs = list(zip(answer, chosen, strict=True))
            parted = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            same.append([parted, len(pairs)])
    return {"same_tokens": same, "memory": asdict(watch.peak)}


def pack(progress: Progress, path: str, texts: str, output: str) -> dict[str, Any]:
    """Bundles a .tflite; returns what the manifest says of the bundle."""
    gc.enable()
    from edgezoo_core import artifact, bundle

    converted = artifact.read(Path(path))
    built = bundle.build(converted, Path(texts), Path(output), progress)
    return built.record(built.path.parent)


def bench(
    progress: Progress,
    path: str,
    engine: str,
    threads: int,
    points: Sequence[Mapping[str, int]],
    decode: int,
    cache: str,
) -> dict[str, Any]:
    """Measures a file once: loading, prefill, decode, memory."""
    gc.enable()
    if engine == "litert-lm":
        from edgezoo_core.measuring import bundles

        return bundles.measure(Path(path), threads, points, decode, Path(cache))
    from edgezoo_core.measuring import interpreter

    return interpreter.measure(Path(path), threads, points, decode)
