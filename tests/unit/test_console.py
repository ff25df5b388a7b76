"""What is shown while something takes long."""

from __future__ import annotations

import io

from edgezoo_core.cli.console import Stages


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_wait_is_told_when_it_begins_also_where_there_is_no_terminal():
    stream = io.StringIO()
    with Stages(stream) as stages:
        stages("downloading")
        stages("waiting for the hub")
        assert stream.getvalue().endswith("downloading\n          waiting for the hub\n")
        stages("downloading")
    assert stream.getvalue().count("waiting") == 1


def test_rate_does_not_count_what_was_there_before(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with Stages(Terminal()) as stages:
        stages("downloading")
        stages.advance(5_000_000_000, 6_000_000_000)
        now[0] = 1.0
        stages.advance(5_100_000_000, 6_000_000_000)
        stages.advance(1, 2)
        assert stages.__rich__() == "downloading  1 s  5.10 of 6.00 GB  100 MB/s  9 s left"
