"""The pages of the viewer as HTML, made of a library and an address's values; no server is needed for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from drift.dataset.schema import messages_of
from drift.dataset.store import KIND as TRAJECTORIES
from drift.errors import ConfigError, DriftError, require
from drift.reporting.sentences import chain_line, summary_of
from drift.types import STOP_REASONS
from drift.viewer.beside import CHANGES, MOST_COLUMNS, compare_policies, shared_tree
from drift.viewer.choose import KEYS, SORTS, SUCCESSES, read_rows
from drift.viewer.conversation import Conversation, read_conversation, read_conversations, shade
from drift.viewer.index import UNKNOWN, Columns
from drift.viewer.library import Found, Library
from drift.viewer.stages import METRICS, TRAINING, Stage, data_stages, weights_of
from drift.viewer.text import link, templates
from drift.viewer.tokens import find_tokenizer
from drift.weights.table import KIND as WEIGHTS

ROWS, TASK_ROWS = 25, 100
# Characters of a conversation that a row of a list shows.
_EXCERPT = 160
_WORDS = {1: "yes", 0: "no", UNKNOWN: "unknown"}
COLOURS = ("weight", "logprob", "none")
CONVERSATION = ("data", "weights", *KEYS)


class Pages:
    """Makes pages.

    Args:
        library: what is looked at.
        model: whose tokenizer splits replies into tokens; found in the run unless given.
    """

    def __init__(self, library: Library, *, model: str = "") -> None:
        self._library, self._model, self._templates = library, model, templates()
        self._templates.globals |= {"shade": shade, "WORDS": _WORDS, "STOPS": STOP_REASONS}

    def run(self, query: Mapping[str, str]) -> str:
        """Every stage with its figures, and where to go from there."""
        stages = self._library.stages()
        shown = [self._stage(stage, stages) for stage in stages]
        return self._page("run.html", title=self._library.root.resolve().name, live=True, stages=shown)

    def conversations(self, query: Mapping[str, str]) -> str:
        """A page of the conversations that ``query`` asks for."""
        found = self._library.find(query)
        last = max(1, -(-len(found.order) // ROWS))
        at = min(_whole(query, "page", 1), last)
        places = found.order[(at - 1) * ROWS : at * ROWS].tolist()
        kept = {key: query[key] for key in CONVERSATION if query.get(key)}
        stages = self._library.stages()
        return self._page(
            "list.html",
            title=found.data.name,
            live=not found.data.manifest["complete"],
            found=found,
            query=kept,
            rows=list(_rows(found, places)),
            page=at,
            pages=last,
            names=[stage.name for stage in data_stages(stages)],
            choices=[stage.name for stage in weights_of(found.data, stages)],
            sorts=SORTS,
            successes=SUCCESSES,
        )

    def conversation(self, query: Mapping[str, str]) -> str:
        """One conversation, ``query["id"]``, and those before and after it among what ``query`` asks for."""
        found = self._library.find(query)
        at = found.columns.place_of(query.get("id", ""))
        if at is None and found.columns.waiting:
            found = self._library.find(query, patience=float("inf"))
            at = found.columns.place_of(query.get("id", ""))
        if at is None:
            raise ConfigError(f"id: got {query.get('id', '')!r}, expected that of a conversation in {found.data.name}.")
        colour = query.get("colour") or ("weight" if found.weighed else "none")
        require(colour in COLOURS, "colour", colour, f"one of {', '.join(COLOURS)}")
        kept = {key: query[key] for key in (*CONVERSATION, "colour") if query.get(key)}
        position = _position(found, at)
        around: list[str | None] = [None, None]
        if position is not None:
            places = [position - 1, position + 1]
            ids = [
                found.columns.ids[int(found.order[p])].as_py() if 0 <= p < len(found.order) else None for p in places
            ]
            around = [link("conversation", kept, id=name) if name else None for name in ids]
        return self._page(
            "conversation.html",
            title=query["id"],
            live=False,
            found=found,
            one=read_conversation(found, at, self._tokenizer(found.data)),
            colour=colour,
            colours=COLOURS,
            query=kept,
            position=position,
            up=link("list", {key: kept[key] for key in CONVERSATION if key in kept}, page=(position or 0) // ROWS + 1),
            around=around,
        )

    def tree(self, query: Mapping[str, str]) -> str:
        """The conversations of one prompt side by side, as a tree of what they share."""
        found = self._library.find(query)
        prompt = query.get("prompt", "")
        places = found.columns.in_group(prompt)
        if not places and not found.columns.waiting:
            raise ConfigError(f"prompt: got {prompt!r}, expected the group_id of a prompt in {found.data.name}.")
        rows = read_rows(found.columns, places[:MOST_COLUMNS], ["messages", "extras"])
        read = [at for at in places if at in rows]
        order, cells = shared_tree([messages_of(rows[at]) for at in read])
        return self._page(
            "tree.html",
            title=prompt,
            live=not found.data.manifest["complete"],
            found=found,
            prompt=prompt,
            total=len(places),
            heads=[_figures(found, read[at]) for at in order],
            cells=cells,
            query={key: query[key] for key in ("data", "weights") if query.get(key)},
        )

    def compare(self, query: Mapping[str, str]) -> str:
        """Policies on the same tasks; with ``query["task"]`` what they said there, side by side."""
        made = compare_policies(self._library, query)
        kept = {key: query[key] for key in ("evaluation", "mode", "change") if query.get(key)}
        shared = {"live": False, "made": made, "query": kept, "changes": CHANGES}
        if not query.get("task"):
            last = max(1, -(-len(made.rows) // TASK_ROWS))
            at = min(_whole(query, "page", 1), last)
            rows = made.rows[(at - 1) * TASK_ROWS : at * TASK_ROWS]
            title = f"{made.evaluation.name}, {made.mode}"
            return self._page("tasks.html", title=title, rows=rows, page=at, pages=last, **shared)
        task, sample = query["task"], _whole(query, "sample", 0)
        columns: list[tuple[str, Found, Conversation]] = []
        most = 0
        for policy, stage in made.policies.items():
            found = self._library.find({"data": stage.name}, patience=float("inf"))
            places = found.columns.of_task(task)
            if not places:
                raise ConfigError(f"task: got {task!r}, expected one that {policy} was measured on.")
            most = max(most, len(places))
            one = read_conversation(found, places[min(sample, len(places) - 1)], self._tokenizer(stage))
            columns.append((policy, found, one))
        tasks = [row.task for row in made.rows]
        position = tasks.index(task) if task in tasks else None
        ends = (None, None) if position is None else (position - 1, position + 1)
        around = [link("compare", kept, task=tasks[p]) if p is not None and 0 <= p < len(tasks) else None for p in ends]
        up = link("compare", kept, page=(position or 0) // TASK_ROWS + 1)
        more = {"sample": sample, "samples": most, "around": around, "up": up, "task": task, "columns": columns}
        return self._page("compare.html", title=task, **more, **shared)

    def problem(self, words: str) -> str:
        """A page that says why there is no other."""
        return self._page("problem.html", title="not found", live=False, words=words)

    def export(self, found: Found, places: list[int]) -> str:
        """A page that needs no server: some conversations, one below the other, with what is known of each."""
        tokenizer = self._tokenizer(found.data)
        style = Markup(files("drift.viewer").joinpath("static/viewer.css").read_text(encoding="utf-8"))
        shown = list(read_conversations(found, places, tokenizer))
        title = f"{self._library.root.resolve().name}, {found.data.name}"
        return self._page("export.html", title=title, live=False, style=style, found=found, conversations=shown)

    def _tokenizer(self, data: Stage) -> Any | None:
        return find_tokenizer(self._library.root, data, self._library.stages(), self._model)

    def _page(self, name: str, **values: Any) -> str:
        found: Found | None = values.get("found")
        return self._templates.get_template(name).render(
            **{"style": None, "unfinished": found.unfinished if found else (), **values}
        )

    def _stage(self, stage: Stage, stages: list[Stage]) -> dict[str, Any]:
        """What the run's page tells of a stage."""
        shown: dict[str, Any] = {"stage": stage, "lines": [], "links": [], "curve": ""}
        try:
            if stage.kind == TRAJECTORIES:
                found = self._library.find({"data": stage.name}, patience=0.2)
                shown["lines"] = [*_counted(stage, found.columns), *found.unfinished]
                shown["links"] = [("read them", link("list", data=stage.name))]
            elif stage.kind == TRAINING:
                shown |= {"lines": _last_step(stage.path), "curve": _curve(stage.path)}
            elif stage.manifest:
                more = [chain_line(stage.manifest["chain"])] if stage.kind == WEIGHTS else []
                shown["lines"] = [*more, *summary_of(stage.kind, stage.manifest, stage.path)]
                shown["curve"] = _curve(stage.path)
            if stage.kind == "evaluation":
                modes = stage.manifest["modes"]
                shown["links"] = [
                    (f"side by side, {mode}", link("compare", evaluation=stage.name, mode=mode)) for mode in modes
                ]
        except (DriftError, OSError, KeyError, ValueError) as error:
            shown["lines"] = [f"can't be read: {error}"]
        return shown


def _whole(query: Mapping[str, str], name: str, least: int) -> int:
    text = query.get(name) or str(least)
    require(text.isdecimal() and len(text) < 10 and int(text) >= least, name, text, f"a whole number ≥ {least}")
    return int(text)


def _position(found: Found, at: int) -> int | None:
    """Where conversation ``at`` is among those asked for."""
    places = (found.order == at).nonzero()[0]
    return int(places[0]) if len(places) else None


def _figures(found: Found, at: int) -> dict[str, Any]:
    numbers, weighed = found.columns.numbers, found.weighed
    error = int(numbers["error"][at])
    return {
        "id": found.columns.ids[at].as_py(),
        "task": found.columns.tasks[at].as_py(),
        "group": found.columns.groups[at].as_py(),
        "turns": int(numbers["turns"][at]),
        "success": int(numbers["success"][at]),
        "stop": STOP_REASONS[numbers["stop"][at]] if numbers["stop"][at] >= 0 else "?",
        "error": found.columns.kinds[error] if error >= 0 else "",
        "reward": float(numbers["reward"][at]),
        "return": float(weighed.return_N[at]) if weighed else None,
        "weight": float(weighed.weight_N[at]) if weighed else None,
    }


def _rows(found: Found, places: list[int]) -> Iterator[dict[str, Any]]:
    said = read_rows(found.columns, places, ["messages"])
    for at in places:
        messages = said[at]["messages"] if at in said else [{"content": "(can't be read)"}]
        text = " ".join((messages[-1]["content"] if messages else "")[-4 * _EXCERPT :].split())
        yield {**_figures(found, at), "excerpt": f"…{text[-_EXCERPT:]}" if len(text) > _EXCERPT else text}


def _counted(stage: Stage, columns: Columns) -> Iterator[str]:
    numbers, count = columns.numbers, len(columns)
    planned = stage.manifest["spec"].get("trajectories", count)
    whole = "" if stage.manifest["complete"] else f" of {planned:,} so far"
    yield f"{count:,} conversations{whole}"
    if not count:
        return
    judged, right = int((numbers["success"] != UNKNOWN).sum()), int((numbers["success"] == 1).sum())
    yield (
        f"{right:,} of {judged:,} succeeded ({right / judged:.0%})"
        if judged
        else "nobody judged whether they succeeded"
    )
    yield f"{numbers['turns'].mean():.3g} replies and a reward of {numbers['reward'].mean():.3g} on the average"
    for code, kind in enumerate(columns.kinds):
        yield f"{int((numbers['error'] == code).sum()):,} failed: {kind}"
    yield from columns.problems


def _metrics(path: Path) -> list[dict[str, Any]]:
    file = path / METRICS
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.is_file() else []


def _last_step(path: Path) -> list[str]:
    rows = _metrics(path)[-1:]
    return [", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in row.items()) for row in rows]


def _curve(path: Path) -> str:
    """The loss as points of a line in a box of 100 × 30; empty where there is none."""
    rows = [row for row in _metrics(path) if isinstance(row.get("loss"), int | float)]
    if len(rows) < 2:
        return ""
    rows = rows[:: -(-len(rows) // 400)]
    low, high = min(row["loss"] for row in rows), max(row["loss"] for row in rows)
    points = enumerate(30 - 28 * (row["loss"] - low) / ((high - low) or 1) for row in rows)
    return " ".join(f"{100 * at / (len(rows) - 1):.2f},{y:.2f}" for at, y in points)
