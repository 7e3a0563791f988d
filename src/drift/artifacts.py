"""What a stage returns: a handle on the directory it wrote, with its manifest, a table of it, and what it says."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift.manifest import read_manifest

if TYPE_CHECKING:
    import pandas as pd

# Kinds of directories, as their manifests name them.
TRAJECTORIES, REWARDS, WEIGHTS, MODEL = "trajectories", "rewards", "weights", "model"
EVALUATION, COMPARISON, LIKELIHOOD = "evaluation", "comparison", "likelihood"
# Conversations that a notebook shows.
_ROWS = 10


class Artifact(os.PathLike[str]):
    """A directory that a stage wrote. It can be given wherever a path can.

    Args:
        path: the directory.
        kind: what is in it: trajectories, rewards, weights, model or evaluation.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        self.path, self.kind = Path(path), kind

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, os.PathLike | str) and self.path == Path(other)

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return "\n".join([f"{self.kind} in {self.path}", *self.summary()])

    @property
    def manifest(self) -> dict[str, Any]:
        """How it was made: settings, versions, hashes, counts (docs/artifacts.md)."""
        if self.kind == COMPARISON:
            return json.loads((self.path / "comparison.json").read_text())  # type: ignore[no-any-return]
        return read_manifest(self.path, self.kind)

    def summary(self) -> list[str]:
        """What a person wants to know of it, in plain sentences."""
        from drift.reporting.sentences import summary_of

        return list(summary_of(self.kind, self.manifest, self.path))

    def to_pandas(self) -> pd.DataFrame:
        """A row for each conversation, weight, logged training step, or estimate; needs the package pandas."""
        import pandas as pd
        import pyarrow.parquet as pq

        if self.kind in (WEIGHTS, REWARDS):
            return pq.read_table(self.path / f"{self.kind}.parquet").to_pandas()
        if self.kind == TRAJECTORIES:
            return pd.DataFrame(_conversations(self.path))
        if self.kind == COMPARISON:
            return pd.DataFrame(self.manifest["rows"])
        if self.kind in (EVALUATION, LIKELIHOOD):
            return pd.DataFrame(json.loads((self.path / "estimates.json").read_text()))
        return pd.read_json(self.path / "metrics.jsonl", lines=True)

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary())
        shown = f"<p><b>{html.escape(self.kind)}</b> in <code>{html.escape(str(self.path))}</code></p><ul>{lines}</ul>"
        if self.kind != TRAJECTORIES:
            return shown
        from drift.viewer.export import export_page

        return shown + _framed(export_page(self.path, "", rows=_ROWS), "conversations")


class Run(Artifact):
    """The directory of a whole run, one handle for each of its stages."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, EVALUATION if (Path(path) / "evaluation").is_dir() else MODEL)

    @property
    def rollouts(self) -> Artifact:
        """The conversations that were learned from, sampled or logged."""
        return Artifact(self.path / "rollouts", TRAJECTORIES)

    @property
    def weights(self) -> Artifact:
        """Their weights, of the last round where there are several."""
        return Artifact(self._last() / "weights", WEIGHTS)

    @property
    def model(self) -> Artifact:
        """The tuned model, of the last round where there are several."""
        return Artifact(self._last() / "model", MODEL)

    @property
    def evaluation(self) -> Artifact:
        """What was measured."""
        return Artifact(self.path / "evaluation", EVALUATION)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the evaluation; of the model where nothing was measured."""
        return self._last_stage().manifest

    def to_pandas(self) -> pd.DataFrame:
        """A row for each estimate, or logged training step where nothing was measured."""
        return self._last_stage().to_pandas()

    def _last_stage(self) -> Artifact:
        return self.evaluation if self.kind == EVALUATION else self.model

    def _last(self) -> Path:
        rounds = sorted(self.path.glob("round-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        return rounds[-1] if rounds else self.path


class Page(os.PathLike[str]):
    """A self-contained HTML page."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"page {self.path}"

    def _repr_html_(self) -> str:
        return _framed(self.path.read_text(encoding="utf-8"), "page")


def _framed(page: str, title: str) -> str:
    return (
        f'<iframe srcdoc="{html.escape(page)}" style="width: 100%; height: 40em; border: 0" title="{title}"></iframe>'
    )


def _conversations(path: Path) -> list[Mapping[str, Any]]:
    from drift.dataset.store import stream_trajectories

    return [
        {
            "id": each.id,
            "task_id": each.task_id,
            "group_id": each.group_id,
            "sample": each.sample,
            "turns": len(each.turns),
            "success": each.success,
            "reward": sum(turn.step.reward for turn in each.turns),
            "stop_reason": each.stop_reason,
            "tokens": each.tokens_sampled,
            "error": each.error,
            "messages": list(each.messages),
        }
        for each in stream_trajectories(path)
    ]
