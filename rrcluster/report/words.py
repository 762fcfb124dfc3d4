"""Numbers as people write them."""

from __future__ import annotations

import math
from collections.abc import Mapping


def percent(share: float) -> str:
    """A share as people write it: 31%, 4.2%, <0.1%."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{100 * share:.1f}%" if share < 0.1 else f"{100 * share:.0f}%"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size_in_bytes(count: float) -> str:
    power = min(int(math.log10(max(count, 1))) // 3, 5)
    value = count / 1000**power
    return f"{value:.0f} B" if power == 0 else f"{value:.1f} {'kMGTP'[power - 1]}B"


def significant(value: float) -> str:
    """Three significant digits without an exponent for usual sizes."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rates(found: Mapping[str, float]) -> str:
    """A stage's rates: ``412 images/s, 1% encoder wait``."""
    said = []
    for name, value in sorted(found.items(), key=lambda item: item[0].endswith("_share")):
        what = name.removesuffix("_share").replace("_per_second", "/s").replace("_", " ")
        amount = f"{value:.0%}" if name.endswith("_share") else significant(value)
        said.append(f"{amount} {what}")
    return ", ".join(said)
