"""plan: what a conversion takes and gives, before any weight is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.conversion_options import conversion_options
from edgezoo_core.cli.options import (
    TARGET_HELP,
    json_option,
    print_json,
    source_options,
    verbose_option,
)
from edgezoo_core.cli.verify import FAILED
from edgezoo_core.errors import listing, plain

if TYPE_CHECKING:
    from edgezoo_core.planning import Plan


@click.command("plan", epilog=TARGET_HELP)
@click.argument("target")
@conversion_options
@source_options
@json_option
@verbose_option
@click.pass_context
def plan_command(
    ctx: click.Context,
    target: str,
    wanted: dict[str, Any],
    as_json: bool,
    verbose: bool,
) -> None:
    """Say what converting TARGET takes, gives and meets, before any weight is downloaded.

    Exit code 3 says that it cannot succeed.
    """
    with working(verbose=verbose) as stages:
        from edgezoo_core import planning

        plan = planning.plan(target, progress=stages, **wanted)
        stages.done()
    if as_json:
        print_json(plan.to_json())
    else:
        for name, value in _facts(plan):
            click.echo(f"{name:<16}{plain(value)}")
        for line in _findings(plan):
            click.echo(line)
    if not plan.fits:
        ctx.exit(FAILED)


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "source", plan.source
    yield "license", plan.license + (", gated" if plan.is_gated else "")
    if plan.family:
        yield "family", f"{plan.family}, from {plan.plugin}"
    if plan.parameters:
        yield "parameters", f"{plan.parameters:,}"
    if plan.missing or plan.unexpected or plan.misshapen:
        counts = (len(plan.missing), len(plan.unexpected), len(plan.misshapen))
        yield "tensors", "{} missing, {} unexpected, {} of another shape".format(*counts)
    elif plan.basis:
        yield "tensors", "not compared" if _is_unread(plan) else "all map"
    yield "recipe", plan.recipe + (" (litert-torch's own path)" * (plan.engine == "litert"))
    if plan.options:
        lengths = ", ".join(map(str, plan.options.prefill_lengths))
        yield "shapes", f"prefill {lengths}, KV cache {plan.options.kv_cache_length}"
    if plan.download_bytes:
        yield (
            "download",
            f"{_size(plan.download_bytes)}, {_time(plan.download_seconds)} at 100 Mbit/s",
        )
    if plan.artifact_bytes:
        yield "file", _size(plan.artifact_bytes)
    if plan.bundle_bytes:
        yield "bundle", _size(plan.bundle_bytes)
    if plan.kv_cache_bytes:
        caches = (f"{_size(size)} at {n}" for n, size in plan.kv_cache_bytes.items())
        yield "KV cache", listing(caches)
    if plan.seconds is not None:
        kept = {"trace": ", the traced graph is kept", "skeleton": ", the compiled graph is kept"}
        yield "time", f"{_time(plan.seconds)}{kept.get(plan.basis or '', '')}"
    if plan.peak_memory_bytes:
        free = plan.available_memory_bytes
        told = f", {free / 1e9:.2f} GB free" if free is not None else ""
        yield "peak memory", f"{plan.peak_memory_bytes / 1e9:.2f} GB{told}"
    for disk in plan.disks:
        holds, room = ", ".join(disk.holds), _size(disk.free_bytes)
        yield "disk", f"{_size(disk.needed_bytes)} for {holds} at {disk.path}, {room} free"
    yield "fits", "yes" if plan.fits else "no"


def _findings(plan: Plan) -> Iterator[str]:
    for finding in plan.findings:
        lines = finding.message.splitlines() or [""]
        yield ""
        yield f"{finding.level}: {finding.subject}: {plain(lines[0])}"
        yield from (f"  {plain(line.strip())}" for line in lines[1:])
        if finding.remedy:
            yield f"Fix: {plain(finding.remedy)}"


def _is_unread(plan: Plan) -> bool:
    return any(f.subject == "tensors" for f in plan.findings)


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"
