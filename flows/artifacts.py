"""What Prefect's pages show of a run: progress, the funnel, the jobs' measures, a link to the report. No caption and no
URL of a pair is among them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from vlmdata.catalog import logged
from vlmdata.dataset import Dataset
from vlmdata.parts import snapshot_folder
from vlmdata.snapshot import without_secrets


@dataclass
class Progress:
    """The share of a run's stages that are done, as one artifact."""

    artifact: Any = None  # its UUID; typed as in Prefect, it might be a coroutine
    done: int = 0

    def begins(self, stage: str, stages: int) -> None:
        """A stage begins, of so many."""
        self._show(100 * self.done / stages, f"{stage}: under way")
        self.done += 1

    def ends(self) -> None:
        """The run has come to its end."""
        self._show(100.0, "done")

    def _show(self, percent: float, what: str) -> None:
        if self.artifact is None:
            self.artifact = create_progress_artifact(min(percent, 100.0), key="progress", description=what)
        else:
            update_progress_artifact(self.artifact, min(percent, 100.0), what)


def publish(dataset: Dataset, manifest: dict[str, Any]) -> None:
    """The artifacts of a snapshot."""
    number = manifest["number"]
    funnel = [{"step": step["reason"] or "all pairs", "rejected": step.get("rejected", 0), "left": step["left"]}
              for step in manifest["funnel"]]  # fmt: skip
    create_table_artifact(funnel, key="funnel", description=f"snapshot {number}: what each step rejected and left")
    shown = ("job", "step", "name", "value")
    measured = [{name: row[name] for name in shown} for row in logged(dataset, "metrics", number)]
    if measured:
        create_table_artifact(measured, key="metrics", description=f"snapshot {number}: what its jobs measured")
    report = dataset.path(f"{snapshot_folder(number)}/report.html")
    link = Path(report).as_uri() if dataset.local else without_secrets(dataset.fs.unstrip_protocol(report))
    create_link_artifact(link, link_text=f"report of snapshot {number}", key="report", description=report)
