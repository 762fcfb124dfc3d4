"""Sentences: what the corpus holds, what is missing from an unfinished run, what to do next."""

from __future__ import annotations

from rrcluster.report.progress import Progress
from rrcluster.report.summary import Cluster, Summary
from rrcluster.report.words import percent, plural

NAMED = 5  # clusters named in the headline
FOLLOWS = {
    "manifest": "the list of input shards",
    "embed": "the embeddings of the images",
    "seed": "the first clusters",
    "refine": "the refined clusters",
    "count": "the estimate of the number of clusters",
    "caption": "the clusters' names and sizes",
    "adopt": "the clusters that were made elsewhere",
    "write": "every sample's cluster, confidence and outlier score",
}


def headline(summary: Summary) -> str:
    """What the corpus holds, in one sentence."""
    progress = summary.progress
    if not summary.roots:
        if not progress.read:
            return "Nothing has been read yet."
        about = "About " if progress.estimated else ""
        images = plural(progress.embedded, noun(progress))
        return f"{about}{images} embedded so far, not yet sorted into clusters."
    counts = plural(summary.num_leaves, "cluster")
    if len(summary.sizes) == 2:
        counts += f" in {plural(len(summary.sizes[0]), 'group')}"
    elif len(summary.sizes) > 2:
        per_level = ", ".join(f"{len(sizes):,}" for sizes in summary.sizes)
        counts += f" on {len(summary.sizes)} levels ({per_level})"
    verb = "is" if progress.embedded == 1 else "are"
    sentence = f"{plural(progress.embedded, noun(progress))} {verb} sorted into {counts}"
    named = [f"{c.name} ({percent(c.share)})" for c in _telling(summary) if c.captions][:NAMED]
    if not named:
        return f"{sentence}; none of them has a name yet."
    if len(named) > 1:
        named = [", ".join(named[:-1]) + " and " + named[-1]]
    nameless = any(not c.captions for c in _telling(summary))
    return f"{sentence}; the largest{' with a name' if nameless else ''}: {named[0]}."


def noun(progress: Progress) -> str:
    """What a sample of this corpus is."""
    ready = progress.record.get("config", {}).get("corpus", {}).get("format") == "embeddings"
    return "vector" if ready else "image"


def _telling(summary: Summary) -> list[Cluster]:
    """Coarsest clusters when at least three have names, otherwise the leaves, largest first."""
    groups_tell = sum(bool(c.captions) for c in summary.roots) >= 3
    found = list(summary.roots) if groups_tell else summary.leaves
    return sorted(found, key=lambda c: (-c.size, c.cluster_id))


def missing_parts(progress: Progress) -> list[str]:
    """What an unfinished run does not have yet, stage by stage."""
    found = []
    for stage in progress.stages:
        if stage.status == "done" or stage.name not in FOLLOWS:
            continue
        parts = f" ({stage.done:,} of {stage.total:,} shards are there)" if stage.total > 1 else ""
        found.append(f"{stage.name}: {FOLLOWS[stage.name]}{parts}")
    return found


def reconciliation(progress: Progress) -> str:
    """The counts in one line, and whether they add up."""
    about = "≈ " if progress.estimated else ""
    line = f"{about}{progress.read:,} read = {progress.embedded:,} embedded + {progress.bad:,} bad"
    if progress.reconciles is False:
        short = progress.read - progress.embedded - progress.bad
        return line.replace(" = ", " ≠ ") + f": {short:+,} not accounted for"
    return line if progress.reconciles else f"{line} so far"


def next_steps(progress: Progress, summary: Summary | None = None) -> list[str]:
    """What to do now, most pressing first. Text in backticks is a command or a setting."""
    run_dir = progress.uri
    steps = []
    failed = [s.name for s in progress.stages if s.status == "failed"]
    if failed:
        steps.append(
            f"Stage {failed[0]} failed: see its error in the job's log, then run the same command "
            "again; it goes on where it was."
        )
    elif not progress.finished:
        waiting = next(s.name for s in progress.stages if s.status != "done")
        steps.append(
            f"The run stands at stage {waiting}. If no job is at work on it, run the same command "
            "again; it goes on where it was."
        )
    for one in progress.increments:
        if one.status == "failed":
            steps.append(
                f"Increment {one.number} failed at stage {one.stage}: see its error in the job's "
                "log, then run `rrcluster recluster` again; it goes on where it was."
            )
        elif one.status == "running":
            steps.append(
                f"Increment {one.number} stands at stage {one.stage}; readers see the run without "
                "it. If no job is at work on it, run `rrcluster recluster` again; it goes on where "
                "it was."
            )
    if progress.reconciles is False:
        steps.append("The counts do not add up: run `rrcluster status` and keep the job's log.")
    allowed = progress.record.get("config", {}).get("corpus", {}).get("max_bad_fraction")
    if progress.bad and allowed is not None and progress.bad > allowed * progress.read:
        steps.append(
            f"{percent(progress.bad / progress.read)} of the rows are bad, more than "
            f"`corpus.max_bad_fraction={allowed}`: look at the reasons below before using the run."
        )
    if summary is not None:
        steps += _findings(summary)
    if progress.finished and progress.increments:
        steps.append(
            f"`rrcluster resolve run_dir={run_dir}` writes every image with its path in the tree "
            f"as it is now; the clusters are in `{run_dir}/clusters`: Parquet, for pyarrow, DuckDB "
            "or Spark."
        )
    elif progress.finished:
        steps.append(
            f"Every image with its path in the tree is in `{run_dir}/assignments`, the clusters "
            f"in `{run_dir}/clusters`: Parquet, for pyarrow, DuckDB or Spark."
        )
    return steps


def _findings(summary: Summary) -> list[str]:
    steps = []
    curve = summary.curve
    if curve is not None and not curve.enough_data:
        steps.append(
            "The corpus is too small to tell how many clusters it has; read the number as a guess."
        )
    elif curve is not None and curve.asked != "auto":
        asked = summary.num_leaves or (curve.chosen[-1] if curve.chosen else 0)
        if not curve.low <= asked <= curve.high:
            steps.append(
                f"The curve suggests {curve.low:,} to {curve.high:,} clusters and the run has "
                f"{asked:,} as asked: try `k={curve.estimate}` or `k=auto` in another run_dir."
            )
    copies, total = summary.duplicates.extra, summary.progress.embedded
    if total and copies / total >= 0.05:
        steps.append(
            f"{percent(copies / total)} of the samples repeat an earlier one: drop repeats by "
            "`sample_id` before training."
        )
    leaves = summary.leaves
    nameless = sum(not c.captions and c.size > 0 for c in leaves)
    if nameless and summary.progress.stage("caption").status == "done":
        steps.append(
            f"{nameless:,} of {plural(len(leaves), 'cluster')} "
            f"{'has' if nameless == 1 else 'have'} no name, as no candidate got enough votes: "
            "give words of your own in `caption.vocabulary`, or lower `caption.min_score`, "
            "in another run_dir."
        )
    unsure = [c for c in leaves if c.size and median(c.confidence) < 0.5]
    if unsure:
        names = ", ".join(c.name for c in unsure[:3])
        steps.append(
            f"{plural(len(unsure), 'cluster')} with a median confidence under 0.5 "
            f"({names}{', …' if len(unsure) > 3 else ''}): look at the borderline samples."
        )
    return steps


def median(histogram: tuple[int, ...]) -> float:
    """The median of a histogram over 0..1, to half a bin; 1 for an empty one."""
    total, seen = sum(histogram), 0
    for i, count in enumerate(histogram):
        seen += count
        if total and 2 * seen >= total:
            return (i + 0.5) / len(histogram)
    return 1.0
