"""Rules for the chat template: rendered as on the device, and held against the source's."""

from __future__ import annotations

from collections.abc import Iterator

from edgezoo_core.bundle import rendering
from edgezoo_core.bundle.turns import Conversation, RefusedError
from edgezoo_core.contract.report import Fault, NotCheckedError, Severity, rule
from edgezoo_core.contract.subject import Subject
from edgezoo_core.errors import listing

_FIX = "`edgezoo check --fix --source …` writes one that renders; so does `edgezoo bundle`"
#: Types for which LiteRT-LM makes a template of prompt_templates; others have their own in it.
_BY_AFFIXES = (None, "generic_model", "qwen3", "qwen2p5", "gemma4", "fast_vlm", "minicpmv4")
#: Its presence makes LiteRT-LM render one turn at a time, with other variables.
_SINGLE_TURN = "is_appending_to_prefill"

_TURNS = (
    {"role": "user", "content": "Hello there!"},
    {"role": "assistant", "content": "  two\nlines \n\n"},
    {"role": "user", "content": "{{ x }} {% y %} <b>"},
    {"role": "assistant", "content": "na\u00efve 12 34 \U0001f600"},
    {"role": "user", "content": " And then?\n"},
)
_SYSTEM = {"role": "system", "content": " Be brief. "}


@rule(
    "template-renders",
    "error",
    why="minijinja is not Python's Jinja: where it fails, the app gets an error instead of an"
    " answer",
    remedy=_FIX,
    is_mendable=True,
)
def template_renders(subject: Subject) -> Iterator[str]:
    """LiteRT-LM can render the template for one turn and for several."""
    template = template_of(subject)
    for length in (1, 3, 5):
        conversation = _TURNS[:length]
        try:
            rendering.render(template, conversation, is_asked=True)
        except RefusedError as e:
            yield f"{_described(conversation)}: {e}"
            return


@rule(
    "template-grows",
    "error",
    why="LiteRT-LM prefills what a turn adds to the rendering before, and a turn fails where that"
    " is not its beginning",
    remedy=_FIX,
    is_mendable=True,
)
def template_grows(subject: Subject) -> Iterator[str]:
    """What is rendered for a conversation begins with what was rendered before its last turn."""
    template = template_of(subject)
    for length in (3, 5):
        try:
            before = rendering.render(template, _TURNS[: length - 1], is_asked=False)
            after = rendering.render(template, _TURNS[:length], is_asked=True)
        except RefusedError as e:
            raise NotCheckedError("the template cannot be rendered") from e
        if not after.startswith(before):
            yield f"{_described(_TURNS[:length])}: {_parting(after, before)}"
            return


@rule(
    "later-turns",
    "warning",
    why="LiteRT-LM has read an answer up to its stop token and goes on behind the whole turn: what"
    " the template writes between the two is never read, and later turns look unlike the first",
    remedy=_FIX,
    is_mendable=True,
)
def later_turns(subject: Subject) -> Iterator[str]:
    """A turn of the model is rendered as it was read: prompt, answer, stop token."""
    template = template_of(subject)
    question, answer = _TURNS[0], {"role": "assistant", "content": "Here."}
    try:
        asked = rendering.render(template, (question,), is_asked=True)
        answered = rendering.render(template, (question, answer), is_asked=False)
    except RefusedError as e:
        raise NotCheckedError("the template cannot be rendered") from e
    read = asked + answer["content"]
    stops = [subject.tokenizer.ids_of(union) for union in subject.llm.stop_tokens]
    written = ["".join(map(subject.tokenizer.text_of, ids)) for ids in stops]
    if not written:
        raise NotCheckedError("there is no stop token")
    if not any(answered == read + stop for stop in written):
        behind = answered.removeprefix(read)[:40]
        yield f"behind an answer stands {behind!r}, stop tokens are {listing(map(repr, written))}"


@rule(
    "start-token-once",
    "error",
    why="LiteRT-LM puts the start token before the rendered text, and a text that spells it makes"
    " it two: the model never saw that",
    remedy=_FIX,
    is_mendable=True,
)
def start_token_once(subject: Subject) -> Iterator[str]:
    """The template does not write the start token that LiteRT-LM adds."""
    ids = subject.tokenizer.ids_of(subject.llm.start_token)
    if ids and spells(subject, ids[0]):
        yield f"it begins with {subject.tokenizer.text_of(ids[0])!r}, and start_token is {ids[0]}"


@rule(
    "chat-template",
    "error",
    why="the model is asked in another form than it learned: it answers badly, or not at all",
    remedy=_FIX,
    is_mendable=True,
)
def chat_template(subject: Subject) -> Iterator[Fault]:
    """The template renders conversations as the source's does."""
    chat = subject.source.chat
    template = template_of(subject)
    if chat is None:
        if any(subject.llm.HasField(n) for n in ("jinja_prompt_template", "prompt_templates")):
            yield Fault("the source has none, the bundle has one", "warning")
        return
    start = subject.tokenizer.text_of(subject.source.start_token or 0)
    # Apps that give no system message are not concerned by how one is rendered.
    cases: tuple[tuple[Severity, Conversation], ...] = (("error", ()), ("warning", (_SYSTEM,)))
    for severity, opening in cases:
        for length in (1, 3, 5):
            conversation = (*opening, *_TURNS[:length])
            try:
                expected = chat.render(conversation, is_asked=True)
            except RefusedError:
                continue  # then whatever the bundle does is right
            found = _difference(template, conversation, expected, start)
            if found:
                yield Fault(f"{_described(conversation)}: {found}", severity)
                break


def template_of(subject: Subject) -> str:
    """Returns the template that LiteRT-LM uses.

    Raises:
        NotCheckedError: It is one of LiteRT-LM's own, or for single turns.
    """
    found: str = subject.llm.jinja_prompt_template
    kind = subject.llm.llm_model_type.WhichOneof("model_type")
    if _SINGLE_TURN in found:
        raise NotCheckedError(f"the template renders single turns: it names {_SINGLE_TURN}")
    if subject.llm.HasField("jinja_prompt_template"):
        return found
    if kind not in _BY_AFFIXES:
        raise NotCheckedError(f"LiteRT-LM has a template of its own for {kind}")
    return rendering.of_affixes(subject.llm.prompt_templates)


def spells(subject: Subject, token: int) -> bool:
    """Tells whether the rendered template begins with a token."""
    try:
        text = rendering.render(template_of(subject), _TURNS[:1], is_asked=True)
    except RefusedError as e:
        raise NotCheckedError("the template cannot be rendered") from e
    return subject.tokenizer.encode(text)[:1] == [token]


def _difference(template: str, conversation: Conversation, expected: str, start: str) -> str | None:
    """Says where a rendering parts from the expected one, start token left out; None if not."""
    try:
        found = rendering.render(template, conversation, is_asked=True)
    except RefusedError as e:
        return f"it is refused: {e}"
    # A turn may begin with the same text: then it is expected.
    if start and not expected.startswith(start):
        found = found.removeprefix(start)
    return None if found == expected else _parting(found, expected)


def _described(conversation: Conversation) -> str:
    return "-".join(turn["role"] for turn in conversation)


def _parting(found: str, expected: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
        min(len(found), len(expected)),
    )
    return f"{found[at : at + 40]!r} from character {at} on, expected {expected[at : at + 40]!r}"


RULES = (template_renders, template_grows, later_turns, start_token_once, chat_template)
