"""An artifact as a model of lm-evaluation-harness."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from edgezoo_core import artifact, text_sources
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.errors import ArtifactError, EvaluationError, listing
from edgezoo_core.runtime import Sampler, Session
from edgezoo_core.runtime.runner import Floats
from edgezoo_core.sandbox import TemplateError
from edgezoo_core.types import Progress, silent

logger = logging.getLogger(__name__)

#: What lm_eval generates where a task names no length.
_MAX_GENERATED = 256
#: Keys of a task's generation_kwargs that are obeyed.
_OBEYED = {"until", "max_gen_toks", "do_sample", "temperature", "top_k"}
#: Context and continuation as texts (None: a window of a longer text), then as tokens.
_Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("edgezoo")
class EdgezooLM(TemplateLM):
    """An artifact, run by the LiteRT interpreter, one request at a time.

    The file gives logits for one position at a time, so a continuation is scored token by token.
    Requests are answered in the order of their tokens, and what one shares with the request before
    it, from few-shot examples to a question with several answers, is read once.

    Args:
        path: The .tflite.
        tokenizer: A folder or hub repo; the artifact's source by default.
        max_length: Tokens that are read at most; the KV cache's capacity by default.
        num_threads: Threads of the interpreter; one per core by default.
        batch_size: Of no effect: lm_eval passes it to every model; so are the others.
        max_batch_size: Of no effect.
        device: Of no effect.
        progress: Told of downloads.

    Raises:
        EdgezooError: The file or its tokenizer cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: str | None = None,
        max_length: int | None = None,
        num_threads: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        progress: Progress = silent,
    ) -> None:
        super().__init__()
        self.artifact = _open(Path(path))
        if tokenizer:
            folder = text_sources.tokenizer_folder(tokenizer, progress)
        else:
            folder = text_sources.text_folder(self.artifact, progress)
        known = tokenizers.load(folder)
        self._stop, self._vocabulary = known.stop, known.size
        self.tokenizer = _transformers_tokenizer(folder)
        self.session = Session(self.artifact.path, num_threads)
        self.max_length = min(max_length or self.session.capacity, self.session.capacity)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is scored behind."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def tokenizer_name(self) -> str:
        """What tells requests made with this tokenizer from those made with another."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Returns what lm_eval notes of the model beside its scores."""
        manifest = self.artifact.manifest
        written = manifest["artifact"] if manifest else {"file": self.artifact.path.name}
        recipe = {"recipe": manifest["recipe"]["name"]} if manifest else {}
        return {"model_file": {**written, **recipe}}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Returns the ids of a text; a start token that it begins with is not added again."""
        if add_special_tokens is None:
            start = self.tokenizer.decode(self.prefix_token_id)
            add_special_tokens = not has_bos_prefix(string, start)
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a conversation as the text that the model was trained on."""

        def rendered(history: Sequence[Mapping[str, str]]) -> str:
            return tokenizers.render(
                self.tokenizer.get_chat_template(),
                history,
                is_asked=add_generation_prompt,
                is_continued=not add_generation_prompt,
                tokens=self.tokenizer.special_tokens_map,
            )

        try:
            return rendered(chat_history)
        except TemplateError:
            logger.warning(
                "the chat template refuses the conversation: its system turn is left out"
            )
            return rendered([turn for turn in chat_history if turn["role"] != "system"])

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-likelihood of each text, in windows as long as the cache."""
        windows: list[_Request] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(index)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for index, (score, _) in zip(owners, scores, strict=True):
            totals[index] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        jobs = sorted(
            (
                _Job(i, *self._fitted(context, continuation))
                for i, (_, context, continuation) in enumerate(requests)
            ),
            key=lambda job: (job.context, job.continuation),
        )
        self._warn_of_cuts(sum(job.is_cut for job in jobs), len(jobs))
        # None: no bar where nobody watches it.
        with tqdm(total=len(jobs), desc="Scoring", disable=disable_tqdm or None) as bar:
            for context, group in itertools.groupby(jobs, key=lambda job: job.context):
                following = self.session.read(context)
                for job in group:
                    answer = answers[job.index] = self._score(job, following)
                    if text := requests[job.index][0]:
                        self.cache_hook.add_partial("loglikelihood", text, answer)
                    bar.update()
        return answers

    def _score(self, job: _Job, following: Floats) -> tuple[float, bool]:
        """Scores a continuation, given the logits of what follows its context."""
        total, is_greedy = 0.0, True
        self.session.rewind(len(job.context))
        for count, token in enumerate(job.continuation):
            if count:
                following = self.session.feed(job.continuation[count - 1 : count])
            total += _log_probability(following, token)
            is_greedy = is_greedy and int(np.argmax(following)) == token
        return total, is_greedy

    def _fitted(
        self, context: list[int], continuation: list[int]
    ) -> tuple[list[int], list[int], bool]:
        """Cuts a context from the left so that all but the last token have room in the cache."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise EvaluationError(
                f"a continuation of {len(continuation)} tokens does not fit into"
                f" {self.max_length} slots",
                remedy="convert with a larger --kv-cache",
            )
        return context[-room:], continuation, len(context) > room

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns what the model writes behind each context, up to a stop string."""
        answers = [""] * len(requests)
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        cuts = 0
        disobeyed: set[str] = set()
        order = sorted(range(len(requests)), key=prompts.__getitem__)
        for index in tqdm(order, desc="Generating", disable=disable_tqdm or None):
            options = self._options(requests[index].args[1])
            # At 1 the others (top_p, num_beams, repetition_penalty) do nothing.
            disobeyed |= {
                f"{name}={value}"
                for name, value in options.items()
                if name not in _OBEYED and value not in (None, 1)
            }
            room = self.max_length - options["max_gen_toks"]
            if room < 1:
                raise EvaluationError(
                    f"{options['max_gen_toks']} tokens are to be generated, and there are"
                    f" {self.max_length} slots",
                    remedy="convert with a larger --kv-cache, or lower the task's max_gen_toks",
                )
            cuts += len(prompts[index]) > room
            answer = self._generate(prompts[index][-room:], options, seed=index)
            answers[index] = answer
            self.cache_hook.add_partial("generate_until", requests[index].args, answer)
        self._warn_of_cuts(cuts, len(requests))
        if disobeyed:
            logger.warning("not supported, and left out: %s", listing(sorted(disobeyed)))
        return answers

    def _generate(self, prompt: list[int], options: Mapping[str, Any], seed: int) -> str:
        sampler = Sampler(
            float(options["temperature"]) if options["do_sample"] else 0.0,
            int(options.get("top_k") or 0),
            seed,
        )
        ends = [text for text in options["until"] if text]
        written: list[int] = []
        length = options["max_gen_toks"]
        for token in self.session.generate(prompt, length, sampler, self._stop, self._vocabulary):
            written.append(token)
            # Control tokens included: a task may name one as its stop string.
            text = self.tokenizer.decode(written)
            if any(end in text for end in ends):
                break
        answer: str = postprocess_generated_text(
            self.tokenizer.decode(written, skip_special_tokens=True), ends, None
        )
        return answer

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a task's generation_kwargs in one form."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), _MAX_GENERATED))
        end = self.tokenizer.decode(self.eot_token_id)
        options["until"] = handle_stop_sequences(options["until"], eos=end)
        return options

    def _warn_of_cuts(self, count: int, total: int) -> None:
        if count:
            logger.warning(
                "%d of %d requests are longer than the %d slots of the KV cache:"
                " they are cut at their beginning",
                count,
                total,
                self.max_length,
            )


@dataclass(frozen=True, slots=True)
class _Job:
    """One continuation to score: where its answer belongs, and its tokens."""

    index: int
    context: list[int]
    continuation: list[int]
    is_cut: bool


def _open(path: Path) -> artifact.Artifact:
    if path.suffix == ".litertlm":
        model = path.with_suffix(".tflite")
        raise ArtifactError(
            f"{path} is a bundle, and LiteRT-LM gives no dependable scores"
            " (https://github.com/google-ai-edge/LiteRT-LM/issues/3561)",
            remedy=f"name {model if model.is_file() else 'the .tflite that it was made from'}",
        )
    return artifact.read(path)


def _transformers_tokenizer(folder: Path) -> Any:
    try:
        tokenizer = tokenizers.of_transformers(folder)
    except (ArtifactError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # any exception at all, and a panic of Rust is not even that
        raise ArtifactError(
            f"transformers cannot load the tokenizer in {folder}: {str(e)[:500]}",
            remedy="pass --tokenizer with a folder that holds tokenizer.json",
        ) from e
    if tokenizer.eos_token_id is None:
        raise ArtifactError(
            f"the tokenizer in {folder} names no end token",
            remedy="pass --tokenizer with one that has an eos_token",
        )
    return tokenizer


def _log_probability(logits: Floats, token: int) -> float:
    """Returns the log-probability of a token, computed in float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
