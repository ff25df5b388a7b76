"""Chat templates of strangers, and regular expressions, in a process of their own.

Jinja's sandbox keeps a template from Python's insides, and minijinja has none; neither keeps one
from looping for hours or from doubling a text until the memory is full. So both render in a process
that may use so much time and memory and no more, and that runs nothing else: when it dies, the
template is refused and the next one gets a new process. Python's regular expressions may take as
long; those of an adapter's config are tried there first.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

#: Time of the processor that a rendering may take. Ordinary templates take a millisecond.
LIMIT_S = 10.0
#: Memory that the process may take beyond what it takes at its start.
LIMIT_BYTES = 1 << 30
#: Longest text that is taken from it.
LONGEST_TEXT = 4 << 20

#: `transformers`: as transformers renders it. `minijinja`: with minijinja, as LiteRT-LM does.
Engine = Literal["transformers", "minijinja", "patterns"]


class TemplateError(Exception):
    """A template cannot be rendered: it is wrong, refuses what it is given, or takes too much."""


def render(engine: Engine, request: Mapping[str, Any]) -> str:
    """Renders a template with limits.

    Args:
        engine: What renders it.
        request: JSON values, arguments of `_with_transformers` or `_with_minijinja`.

    Raises:
        TemplateError: It cannot be rendered within the limits.
    """
    with _lock:
        return _process().render(engine, request)


def try_patterns(patterns: Sequence[str], texts: Sequence[str]) -> None:
    """Tries regular expressions on texts, each on each, so that they are known to end.

    Raises:
        TemplateError: They take too much time or memory.
    """
    with _lock:
        _process().render("patterns", {"patterns": list(patterns), "texts": list(texts)})


class _Process:
    def __init__(self) -> None:
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)  # noqa: PTH100
        # -P: a file in the folder where the user happens to be is no module of ours.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgezoo_core.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "TRANSFORMERS_VERBOSITY": "error"},
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def render(self, engine: Engine, request: Mapping[str, Any]) -> str:
        stdin: Any = self._process.stdin
        stdout: Any = self._process.stdout
        try:
            stdin.write(
                json.dumps({"engine": engine, "limit_s": LIMIT_S, **request}).encode() + b"\n"
            )
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            code = self._process.wait()
            self.end()
            if code == -signal.SIGVTALRM:
                raise TemplateError(f"it takes more than {LIMIT_S:g} s")
            raise TemplateError("it takes too much memory")
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(answer["error"])
        return str(answer["text"])

    def end(self) -> None:
        if self.is_alive:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with suppress(BrokenPipeError):  # what was not written yet went nowhere
                    stream.close()


_lock = threading.Lock()
_current: _Process | None = None


def _process() -> _Process:
    global _current
    if _current is None or not _current.is_alive:
        if _current is None:
            atexit.register(close)
        _current = _Process()
    return _current


def close() -> None:
    """Ends the process; the next rendering begins another."""
    if _current is not None:
        _current.end()


def _serve() -> None:
    """Answers requests, one a line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    renderers = {
        "transformers": _with_transformers,
        "minijinja": _with_minijinja,
        "patterns": _with_patterns,
    }
    for line in sys.stdin:
        request = json.loads(line)
        engine = request.pop("engine")
        answers.write(json.dumps(_answer(renderers[engine], request)) + "\n")


def _answer(renderer: Any, request: Mapping[str, Any]) -> dict[str, str]:
    try:
        text = renderer(**request)
        if len(text) > LONGEST_TEXT:
            raise TemplateError(f"it makes a text of {len(text)} characters")
        text.encode()
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as e:  # a template can end in any exception at all
        return {"error": str(e)[:1000] or type(e).__name__}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return {"text": text}


def _limit(limit_s: float) -> None:
    """Begins to count time, and memory from here."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        used = int(file.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + LIMIT_BYTES
    limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    # Nobody handles this signal: it ends the process, whatever it is in the middle of.
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)


def _with_transformers(
    limit_s: float,
    template: str,
    conversation: Sequence[Mapping[str, str]],
    is_asked: bool,
    is_continued: bool,
    tokens: Mapping[str, Any],
) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit(limit_s)
    made: Any = render_jinja_template(
        conversations=[[dict(turn) for turn in conversation]],
        chat_template=template,
        add_generation_prompt=is_asked,
        continue_final_message=is_continued,
        **tokens,
    )
    return str(made[0][0])


def _with_minijinja(limit_s: float, templates: Mapping[str, str], fuel: int) -> str:
    from datetime import datetime

    import minijinja

    def raise_exception(message: str) -> str:
        raise TemplateError(message)

    environment = minijinja.Environment(
        templates=dict(templates),
        filters={
            "tojson": lambda value: json.dumps(value, ensure_ascii=False),
            "lstrip": str.lstrip,
            "rstrip": str.rstrip,
        },
        globals={
            # As transformers does.
            "strftime_now": lambda form: datetime.now().strftime(form),
            "raise_exception": raise_exception,
        },
        fuel=fuel,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_escape_callback=lambda name: False,
        pycompat=False,
        debug=False,
    )
    _limit(limit_s)
    try:
        return str(environment.render_template("main"))
    except (RuntimeError, ValueError, TypeError) as e:
        reason = str(e).rpartition("caused by: ")[2]
        raise TemplateError(reason.partition("\n")[0]) from e


def _with_patterns(limit_s: float, patterns: Sequence[str], texts: Sequence[str]) -> str:
    import re

    _limit(limit_s)
    for pattern in patterns:
        for text in texts:
            re.match(pattern, text)
    return ""


if __name__ == "__main__":
    _serve()
