"""The proof that a file still is the model it was made from: the order of a verification."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgezoo_core import artifact, compiler, sources, zoo
from edgezoo_core import recipe as recipes
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.compiler import workers
from edgezoo_core.errors import ArtifactError, VerificationError
from edgezoo_core.shapes import Shapes, SignatureOptions, complete
from edgezoo_core.sources import Source
from edgezoo_core.types import Progress, Recipe, silent

if TYPE_CHECKING:
    from edgezoo_core.verification.report import Outputs, Report, Structure, Weights

Reference = Literal["transformers", "authored"]

#: Tokens of the passage that are read, where the KV cache has room for them.
TOKENS = 256
#: What is continued greedily, and how far.
PROMPTS = ("The capital of France is", "Once upon a time", "def fibonacci(n):\n")
CONTINUED = 24
#: Tokens that a text must give.
_FEWEST = 16


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
    text: Path | None = None,
    max_kl: float | None = None,
    with_structure: bool = True,
    progress: Progress = silent,
) -> Report:
    """Holds an artifact against the checkpoint that its manifest names; the result joins it.

    Args:
        path: The .tflite, with its manifest beside it.
        reference: `transformers`, or `authored` for the re-authored module.
        text: A text file to read in place of the carried sample.
        max_kl: Largest mean KL in nats that passes, in place of the formats' own.
        with_structure: Whether the same graph is made in float32 and examined as well, which takes
            the disk space of a float32 file.
        progress: Told of each stage.

    Raises:
        VerificationError: There is no manifest, or the source is not what it was.
        EdgezooError: The source cannot be had, or the file cannot be run.
    """
    converted = artifact.read(path)
    manifest = _manifest(converted)
    source = _source(manifest, progress)
    reading = _reading(source, manifest, text)
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=path.resolve().parent) as scratch:
        judge = _Judge(path, manifest, source, reading, reference, Path(scratch), progress)
        report = judge.report(max_kl, with_structure=with_structure)
    artifact.write_manifest(path, {**manifest, "verification": report.to_json()})
    return report


class _Judge:
    """One verification: what was read is kept in a folder, each part looks at it."""

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        source: Source,
        reading: _Reading,
        reference: Reference,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._path = path
        self._manifest = manifest
        self._source = source
        self._reading = reading
        self._reference = reference
        self._scratch = scratch
        self._progress = progress
        self._peaks: dict[str, int] = {}

    def report(self, max_kl: float | None, *, with_structure: bool) -> Report:
        from edgezoo_core.verification.report import Report

        answers = self._score(self._path, "subject", self._reading.prompts)
        same = self._refer(answers)
        structure = self._structure() if with_structure else None
        outputs = self._outputs(max_kl, same)
        weights = self._weights()
        return Report(
            self._reference,
            self._reading.text,
            len(self._reading.tokens),
            structure,
            weights,
            outputs,
            self._peaks,
        )

    def _score(self, path: Path, name: str, prompts: Sequence[Sequence[int]]) -> Any:
        self._progress(f"{path.name} reads")
        request = {
            "path": str(path),
            "tokens": self._reading.tokens,
            "start": self._reading.start,
            "folder": str(self._folder(name)),
            "prompts": prompts,
            "count": CONTINUED,
            "vocabulary": self._reading.vocabulary,
        }
        (answer,) = workers.run("score", [request], self._progress)
        self._peaks[name] = answer.peak_memory_bytes
        return answer.result["answers"]

    def _refer(self, answers: Sequence[Sequence[int]]) -> Any:
        self._progress(f"the reference reads ({self._reference})")
        request = {
            "job": self._source.job(recipes.resolve("none"), Shapes()).to_json(),
            "kind": self._reference,
            "tokens": self._reading.tokens,
            "start": self._reading.start,
            "folder": str(self._folder("reference")),
            "prompts": self._reading.prompts,
            "answers": answers,
            "vocabulary": self._reading.vocabulary,
        }
        (answer,) = workers.run("refer", [request], self._progress)
        self._peaks["reference"] = answer.peak_memory_bytes
        return answer.result["same_tokens"]

    def _structure(self) -> Structure:
        from edgezoo_core.verification import report

        output = self._scratch / "float32.tflite"
        if set(self._manifest["recipe"]["weights"].values()) == {"none"}:
            return report.structure(*self._compared("subject"))
        zoo.convert_source(
            self._source, recipe=recipes.resolve("none"), shapes=self._shapes(), output=output,
            progress=self._progress,
        )  # fmt: skip
        self._score(output, "structure", ())
        output.unlink()
        return report.structure(*self._compared("structure"))

    def _outputs(self, max_kl: float | None, same: Any) -> Outputs:
        from edgezoo_core.verification import report

        loss, layers = self._compared("subject")
        formats = list(self._manifest["recipe"]["weights"].values())
        return report.Outputs(
            loss,
            report.bound(formats) if max_kl is None else max_kl,
            tuple((a, b) for a, b in same),
            max(layers, key=lambda d: max(d.keys, d.values)),
        )

    def _compared(self, name: str) -> Any:
        from edgezoo_core.verification import measures, runs

        reference, subject = (runs.load(self._folder(n)) for n in ("reference", name))
        following = self._reading.tokens[self._reading.start :]
        loss = measures.loss(reference.logits, subject.logits, following)
        return loss, measures.layers(reference, subject)

    def _weights(self) -> Weights | None:
        from edgezoo_core.verification import report, weights

        if self._manifest["engine"] != "streaming":
            return None
        asked = recipe_of(self._manifest["recipe"])
        job = self._source.job(asked, self._shapes())
        with compiler.open_cache() as cache:
            compiled = compiler.compile_job(
                job,
                self._source.plugin,
                self._source.checkpoint,
                cache,
                jobs=workers.default_jobs(),
                progress=self._progress,
            )
        compiled.head.close()
        if compiled.program.size_bytes != self._path.stat().st_size:
            raise VerificationError(
                f"{self._path} is laid out otherwise than this version does it",
                remedy="convert it again, or verify it with the versions of its manifest",
            )
        self._progress("reading every stored row")
        errors = weights.compare(
            self._path, compiled.program, self._source.checkpoint, self._progress
        )
        return report.weights(errors)

    def _shapes(self) -> Shapes:
        """Returns the file's shapes, its defaults unnamed, so that its trace is found again."""
        options = SignatureOptions(**self._manifest["options"])
        base = self._source.job(recipes.resolve("none"), Shapes()).base
        given = Shapes(**asdict(options))
        base = replace(base, kv_layout=options.kv_layout, mask_as_input=options.mask_as_input)
        if options == complete(Shapes(), base, base.kv_cache_length):
            return Shapes(kv_layout=options.kv_layout, mask_as_input=options.mask_as_input)
        return given

    def _folder(self, name: str) -> Path:
        folder = self._scratch / name
        folder.mkdir(exist_ok=True)
        return folder


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that a manifest records weight by weight."""
    parts: dict[str, Any] = {}
    layers: dict[int, dict[str, Any]] = {}
    for place, name in record["weights"].items():
        weight = recipes.FORMATS[name]
        if place.startswith("layers."):
            _, index, part = place.split(".", 2)
            layers.setdefault(int(index), {})[part] = weight
        else:
            parts[place] = weight
    return Recipe(record["name"], None, parts, layers)


def _manifest(converted: artifact.Artifact) -> Mapping[str, Any]:
    if converted.manifest is None:
        raise ArtifactError(
            f"{converted.path} has no manifest that names its source",
            remedy="verify a file that edgezoo converted, its manifest beside it",
        )
    if converted.manifest.get("adapters"):
        raise VerificationError(
            f"{converted.path} has adapters merged in, which verify cannot follow yet",
            remedy="merge them with peft into a checkpoint of its own, and convert that",
        )
    return converted.manifest


def _source(manifest: Mapping[str, Any], progress: Progress) -> Source:
    checkpoint, model = manifest["checkpoint"], manifest["model"]
    name = checkpoint["repo"] or checkpoint["folder"]
    source = sources.obtain(
        name,
        revision=checkpoint["commit"],
        family=model["family"],
        card=None if checkpoint["repo"] else model["card_id"],
        progress=progress,
    )
    recorded = {f["name"]: f["sha256"] for f in checkpoint["files"]}
    actual = {f.name: f.sha256 for f in source.checkpoint.hash_files(progress)}
    changed = sorted(n for n in recorded if recorded[n] != actual.get(n))
    if changed:
        raise VerificationError(
            f"{source.model.source} has changed since the conversion: {', '.join(changed)}",
            remedy="convert it again",
        )
    return source


def _reading(source: Source, manifest: Mapping[str, Any], text: Path | None) -> _Reading:
    capacity = manifest["options"]["kv_cache_length"]
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
    tokens = tokenizer.prompt(content, chat=False)[: min(TOKENS, capacity)]
    if len(tokens) < _FEWEST:
        raise VerificationError(
            f"{sample} gives {len(tokens)} tokens, {_FEWEST} are needed", remedy="name a longer one"
        )
    prompts = [tokenizer.prompt(p, chat=False) for p in PROMPTS]
    fitting = [p for p in prompts if len(p) + CONTINUED <= capacity]
    name = str(text) if text else "the carried sample"
    return _Reading(name, tokens, len(tokens) // 2, fitting, tokenizer.size)
