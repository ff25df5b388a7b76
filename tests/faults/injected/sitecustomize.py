# What pathlib calls is watched here:
# ruff: noqa: PTH115, PTH119
"""Faults from outside: on a command's PYTHONPATH, it makes one call of it or its workers fail.

Every call that changes something in a watched folder is a point, and so is the import of the
modules in `imports`. A point's name says the process, the call, the file or module, the two
innermost functions of edgezoo (not for an import), and whether it is the first or the second time;
later times are no points. $EDGEZOO_FAULT is JSON: `watch`, folders; `log`, a file that gets the
names of all points; `at`, the name of a point; `do`, what happens there.
"""

import builtins
import ctypes
import errno
import io
import json
import os
import re
import signal
import sys
import time

_PLAN = json.loads(os.environ.get("EDGEZOO_FAULT", "{}"))
_ROLE = "worker" if "edgezoo_core.compiler" in sys.orig_argv else "command"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = {
    "os.rename": "rename",
    "os.remove": "remove",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.truncate": "truncate",
    "os.utime": "utime",
    "fcntl.flock": "flock",
}
_TIMES = 2
_is_inside = False
_counts = {}


def _point(call, path):
    global _is_inside
    if _is_inside:
        return
    _is_inside = True
    try:
        where = "" if call == "import" else f" {_site()}"
        name = f"{_ROLE} {call} {_masked(path)}{where}"
        _counts[name] = count = _counts.get(name, 0) + 1
        if count > _TIMES:
            return
        name = f"{name} #{count}"
        if _LOG is not None:
            os.write(_LOG, f"{name}\n".encode())
        if name == _PLAN.get("at"):
            _act(_PLAN["do"], path)
    finally:
        _is_inside = False


def _act(what, path):
    if what.startswith("E"):
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number), path)
    if what == "MemoryError":
        raise MemoryError
    if what == "bad_alloc":  # as C++ ends when nobody catches it
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()
    if what == "hold":  # in C++, for long, with the GIL
        ctypes.PyDLL(None).sleep(600)
    if what == "stall":
        time.sleep(600)
    if what == "forever":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "interrupt":  # as a terminal does: all processes in the foreground
        os.killpg(os.getpgrp(), signal.SIGINT)
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))


def _masked(path):
    name = os.path.basename(path)
    name = re.sub(r"[0-9a-f]{64}", "KEY", name)
    name = re.sub(r"[0-9]+-[0-9a-f]{16}", "PARTIAL", name)
    return re.sub(r"\.[0-9a-f]{8}\.|-[0-9a-z_]{8}$", ".TOKEN.", name)


def _site():
    names = []
    frame = sys._getframe(2)
    while frame is not None and len(names) < 2:
        file = frame.f_code.co_filename
        if "/edgezoo_core/" in file:
            module = file.rpartition("/edgezoo_core/")[2].removesuffix(".py")
            names.append(f"{module}:{frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(names)


def _is_watched(path):
    return isinstance(path, str) and path.startswith(_FOLDERS)


def _path_of(file):
    try:
        return os.readlink(f"/proc/self/fd/{file}").removesuffix(" (deleted)")
    except OSError:
        return ""


def _listen(event, arguments):
    if event == "open":
        path, _, flags = arguments
        path = os.fspath(path) if isinstance(path, os.PathLike) else path
        if isinstance(flags, int) and flags & _WRITING and _is_watched(path):
            _point("open", path)
    elif event in _EVENTS:
        path = arguments[0]
        path = _path_of(path) if isinstance(path, int) else os.fspath(path)
        if _is_watched(path):
            target = arguments[1] if event == "os.rename" else path
            _point(_EVENTS[event], os.fspath(target))


class _Imports:
    """Finds nothing: it is asked for a module before those that do."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in _PLAN.get("imports", ()):
            _point("import", name)


class _Raw(io.FileIO):
    """A file whose writes are points: those that reach the system."""

    def write(self, content):
        _point("write", self.name)
        return super().write(content)


def _open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **rest):
    path = os.fspath(file) if isinstance(file, str | os.PathLike) else ""
    if not (_is_watched(path) and set(mode) & set("wax+")) or rest:
        return _real_open(file, mode, buffering, encoding, errors, newline, **rest)
    raw = _Raw(path, mode.replace("b", "").replace("t", ""))
    if buffering == 0:
        return raw
    binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    if "b" in mode:
        return binary
    return io.TextIOWrapper(binary, encoding, errors, newline)


def _wrapped(call, name):
    def wrapper(file, *arguments):
        path = _path_of(file) if isinstance(file, int) else os.fspath(file)
        if _is_watched(path):
            _point(name, path)
        return call(file, *arguments)

    return wrapper


if _PLAN:
    _FOLDERS = tuple(_PLAN["watch"])
    _LOG = None
    if "log" in _PLAN:
        _LOG = os.open(_PLAN["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    if "clock_s" in _PLAN:  # the system's clock jumps when the command is at work
        _time, _time_ns, _began = time.time, time.time_ns, time.monotonic()

        def _jump():
            return _PLAN["clock_s"] if time.monotonic() - _began > _PLAN["after_s"] else 0

        time.time = lambda: _time() + _jump()
        time.time_ns = lambda: _time_ns() + int(_jump()) * 10**9
    _real_open = io.open
    io.open = builtins.open = _open
    for _name in ("fsync", "pwrite", "ftruncate"):
        setattr(os, _name, _wrapped(getattr(os, _name), _name))
    sys.meta_path.insert(0, _Imports)
    sys.addaudithook(_listen)
