"""Is a refit better than the model before it? Judged without labels, on the rows that it was fitted
on.

Two signs, both of which must hold. Raw neighbours share a cluster no less often, corrected for
chance (``probe.py``, the gate's criterion, which no features enter); and the whole code in the new
features is shorter (``merge.py``), what describes the clusters themselves included, so that more
clusters are not better by being more. Clusters opened since the last fit count as the old model's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Adjusted consistency of neighbours on ``probe_rows`` rows and the code's nats per row, of the
    model before and of the refit; ``lengths`` is None where clusters are too many to be compared.
    """

    consistency: tuple[float, float]
    probe_rows: int
    lengths: tuple[float, float] | None

    @property
    def better(self) -> bool:
        before, after = self.consistency
        agrees = after >= before - 1 / max(self.probe_rows, 1)  # as of one row of the probe
        return agrees and (self.lengths is None or self.lengths[1] < self.lengths[0])

    @property
    def words(self) -> str:
        before, after = self.consistency
        said = f"neighbours agree {before:.3f} → {after:.3f}"
        if self.lengths is None:
            return f"{said}; too many clusters to compare codes"
        before, after = self.lengths
        return f"{said}, the code takes {before:.2f} → {after:.2f} nats per row"

    @property
    def facts(self) -> dict[str, list[float] | None]:
        """For the record."""
        lengths = self.lengths and [round(v, 4) for v in self.lengths]
        return {"consistency": [round(v, 4) for v in self.consistency], "nats_per_row": lengths}
