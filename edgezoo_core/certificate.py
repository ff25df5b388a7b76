"""The proof that a file still is the model it was made from: the order of a verification."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgezoo_core import artifact, compiler, partial, provenance, zoo
from edgezoo_core import recipe as recipes
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.checkpoint import sha256
from edgezoo_core.compiler import workers
from edgezoo_core.errors import VerificationError
from edgezoo_core.provenance import Provenance
from edgezoo_core.shapes import Shapes
from edgezoo_core.types import Progress, silent

if TYPE_CHECKING:
    from edgezoo_core.runtime import Runtime
    from edgezoo_core.verification.report import Outputs, Report, Structure, Weights

Reference = Literal["transformers", "authored"]

#: Tokens of the passage that are read, where the KV cache has room for them.
TOKENS = 256
#: What is continued greedily, and how far.
PROMPTS = ("The capital of France is", "Once upon a time", "def fibonacci(n):\n")
CONTINUED = 24
#: Tokens that the float32 graph decodes: what it computes does not change with their number.
_STRUCTURE_STEPS = 16
#: Tokens that a text must give.
_FEWEST = 16


#: A fold of a layer's values.
_VALUES = re.compile(r"layers\.(\d+)\.value")


@dataclass(frozen=True, slots=True)
class _Reading:
    """What subject and reference read.

    Attributes:
        text: Where it comes from.
        tokens: The passage.
        start: How many of them are read at once.
        prompts: What is continued.
        vocabulary: Ids that the tokenizer knows, None if there is none.
    """

    text: str
    tokens: list[int]
    start: int
    prompts: list[list[int]]
    vocabulary: int | None


def verify(
    path: Path,
    *,
    reference: Reference = "transformers",
    runtime: Runtime = "litert",
    text: Path | None = None,
    max_kl: float | None = None,
    with_structure: bool = True,
    progress: Progress = silent,
) -> Report:
    """Holds an artifact against the checkpoint that its manifest names; the result joins it.

    Args:
        path: The .tflite, with its manifest beside it.
        reference: `transformers`, or `authored` for the re-authored module.
        runtime: What runs the file: `litert`, or `tensorflow` for TensorFlow's own interpreter.
        text: A text file to read in place of the carried sample.
        max_kl: Largest mean KL in nats that passes, in place of the formats' own.
        with_structure: Whether the same graph is made in float32 and examined as well, which takes
            the disk space of a float32 file.
        progress: Told of each stage.

    Raises:
        VerificationError: There is no manifest, or the source is not what it was.
        EdgezooError: The source cannot be had, or the file cannot be run.
    """
    where = path.resolve()
    with partial.reserved(where):
        made = provenance.trace(artifact.read(path), progress)
        reading = _reading(made, text)
        with partial.folder(where.parent, "verify") as scratch:
            judge = _Judge(path, made, reading, reference, runtime, scratch, progress)
            report = judge.report(max_kl, with_structure=with_structure)
        # Of which file it speaks: who relies on it compares.
        record = {"sha256": sha256(path), **report.record()}
        artifact.write_manifest(path, {**made.manifest, "verification": record})
    return report


class _Judge:
    """One verification: what was read is kept in a folder, each part looks at it."""

    def __init__(
        self,
        path: Path,
        made: Provenance,
        reading: _Reading,
        reference: Reference,
        runtime: Runtime,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._path = path
        self._made = made
        self._source = made.source
        self._reading = reading
        self._reference = reference
        self._runtime = runtime
        self._scratch = scratch
        self._progress = progress
        self._memory: dict[str, Mapping[str, int | None]] = {}

    def report(self, max_kl: float | None, *, with_structure: bool) -> Report:
        from edgezoo_core.verification.report import Report

        answers = self._score(
            self._path, "subject", self._runtime, self._reading.tokens, self._reading.prompts
        )
        same = self._refer(answers)
        structure = self._structure() if with_structure else None
        outputs = self._outputs(max_kl, same)
        weights = self._weights()
        return Report(
            self._reference,
            self._runtime,
            self._reading.text,
            len(self._reading.tokens),
            structure,
            weights,
            outputs,
            self._memory,
        )

    def _score(
        self,
        path: Path,
        name: str,
        runtime: Runtime,
        tokens: Sequence[int],
        prompts: Sequence[Sequence[int]] = (),
    ) -> Any:
        self._progress(f"{path.name} reads")
        request = {
            "path": str(path),
            "runtime": runtime,
            "tokens": tokens,
            "start": self._reading.start,
            "folder": str(self._folder(name)),
            "prompts": prompts,
            "count": CONTINUED,
            "vocabulary": self._reading.vocabulary,
        }
        (answer,) = workers.run("score", [request], self._progress)
        self._memory[name] = answer.result["memory"]
        return answer.result["answers"]

    def _refer(self, answers: Sequence[Sequence[int]]) -> Any:
        self._progress(f"the reference reads ({self._reference})")
        request = {
            "job": self._source.job(recipes.resolve("none"), Shapes()).to_json(),
            "kind": self._reference,
            "adapters": self._made.adapters.to_json() if self._made.adapters else [],
            "tokens": self._reading.tokens,
            "start": self._reading.start,
            "folder": str(self._folder("reference")),
            "prompts": self._reading.prompts,
            "answers": answers,
            "vocabulary": self._reading.vocabulary,
        }
        (answer,) = workers.run("refer", [request], self._progress)
        self._memory["reference"] = answer.result["memory"]
        return answer.result["same_tokens"]

    def _structure(self) -> Structure:
        from edgezoo_core.verification import report

        output = self._scratch / "float32.tflite"
        if set(self._made.manifest["recipe"]["weights"].values()) == {"none"}:
            return report.structure(*self._compared("subject"))
        zoo.convert_source(
            self._source,
            # With what is folded: the numbers stay the same, and that is what is to be seen.
            recipe=replace(recipes.resolve("none"), folds=self._made.recipe.folds),
            shapes=self._made.shapes,
            output=output,
            adapters=self._made.adapters,
            progress=self._progress,
        )
        tokens = self._reading.tokens[: self._reading.start + _STRUCTURE_STEPS]
        # Kernels that pack float32 weights would need their size once more.
        self._score(output, "structure", "litert-plain", tokens)
        output.unlink()
        return report.structure(*self._compared("structure"))

    def _outputs(self, max_kl: float | None, same: Any) -> Outputs:
        from edgezoo_core.verification import report

        loss, layers = self._compared("subject")
        formats = list(self._made.manifest["recipe"]["weights"].values())
        return report.Outputs(
            loss,
            report.bound(formats) if max_kl is None else max_kl,
            tuple((a, b) for a, b in same),
            max(layers, key=lambda d: max(d.keys, d.values)),
        )

    def _compared(self, name: str) -> Any:
        import numpy as np

        from edgezoo_core.verification import measures, runs

        reference, subject = (runs.load(self._folder(n)) for n in ("reference", name))
        reference = reference.beginning(subject)
        following = self._reading.tokens[self._reading.start :][: len(subject.logits) - 1]
        loss = measures.loss(reference.logits, subject.logits, following)
        factors = {
            int(found[1]): np.ldexp(np.float32(1), -np.array(exponents, np.int32))
            for place, exponents in self._made.recipe.folds.items()
            if (found := _VALUES.fullmatch(place))
        }
        return loss, measures.layers(reference, subject, factors)

    def _weights(self) -> Weights:
        from edgezoo_core.conversion import rescaling
        from edgezoo_core.verification import relocation, report, weights

        job = self._source.job(self._made.recipe, self._made.shapes)
        with compiler.open_cache() as cache:
            compiled = compiler.compile_job(
                job,
                self._source.plugin,
                self._source.checkpoint,
                cache,
                jobs=workers.default_jobs(),
                progress=self._progress,
            )
        with compiled.head as head:
            program = relocation.relocate(compiled.program, head.read(), self._path)
        factors = rescaling.build(
            compiled.places, job.recipe.folds, compiled.shapes, job.model.source
        )
        self._progress("reading every stored row")
        errors = weights.compare(
            self._path,
            program,
            self._source.checkpoint,
            self._made.adapters,
            factors,
            is_compensated=job.recipe.is_compensated,
            progress=self._progress,
        )
        return report.weights(errors)

    def _folder(self, name: str) -> Path:
        folder = self._scratch / name
        folder.mkdir(exist_ok=True)
        return folder


def _reading(made: Provenance, text: Path | None) -> _Reading:
    source, capacity = made.source, made.manifest["options"]["kv_cache_length"]
    folder = source.checkpoint.folder
    if text is None and not zoo.has_tokenizer(folder):
        size = int(source.config["vocab_size"])
        made_up = random.Random(0)  # noqa: S311 - no secret
        tokens = made_up.choices(range(size), k=min(TOKENS, capacity))
        return _Reading("made-up ids: there is no tokenizer", tokens, len(tokens) // 2, [], None)
    sample = text or Path(__file__).parent / "verification" / "sample.txt"
    try:
        content = sample.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise VerificationError(f"{sample} cannot be read: {e}", remedy="name a text file") from e
    tokenizer = tokenizers.load(folder)
    tokens = tokenizer.encode(content)[: min(TOKENS, capacity)]
    if len(tokens) < _FEWEST:
        raise VerificationError(
            f"{sample} gives {len(tokens)} tokens, {_FEWEST} are needed", remedy="name a longer one"
        )
    prompts = [tokenizer.encode(p) for p in PROMPTS]
    fitting = [p for p in prompts if len(p) + CONTINUED <= capacity]
    name = str(text) if text else "the carried sample"
    return _Reading(name, tokens, len(tokens) // 2, fitting, tokenizer.size)
