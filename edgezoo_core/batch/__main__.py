"""A worker: `python -m edgezoo_core.batch`, started by `making.run`, for one request."""

from __future__ import annotations

from edgezoo_core.compiler.__main__ import main

if __name__ == "__main__":
    main("edgezoo_core.batch.making")
