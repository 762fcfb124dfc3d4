"""What increments changed: new rows, drift against the fit, the decision, and ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rrcluster.io.store import Store
from rrcluster.report.section import Content, Section
from rrcluster.report.summary import Summary

SHOWN = 10  # clusters that moved most, of the last increment


def read(store: Store, summary: Summary) -> Content | None:
    """The increments that were added; None for a run without any."""
    found: Mapping[str, Any] = summary.progress.record.get("increments", {})
    parts = [(int(name), part) for name, part in sorted(found.items()) if "decision" in part]
    if not parts:
        return None
    number, last = parts[-1]
    names = {c.cluster_id: c.captions[0][0] for c in summary.leaves if c.captions}
    moved = [
        cluster | {"name": names.get(cluster["cluster_id"], "")}
        for cluster in last["drift"]["clusters"][:SHOWN]
    ]
    steps: tuple[str, ...] = ()
    if last["reasons"] and not last["refit"]:
        steps = (
            "The clusters fit the new images less well ("
            + "; ".join(last["reasons"])
            + "): run `rrcluster recluster` with `recluster.refit=always`.",
        )
    return Content(
        {"parts": parts, "number": number, "moved": moved, "words": last["words"]}, steps=steps
    )


SECTION = Section("drift", "What increments changed", "Increments", read)
