"""Methods by name: what each changes in a recipe, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drift.baselines.config import OnlineConfig, PreferenceConfig
from drift.errors import ConfigError, require, unknown_name
from drift.files import check_folder_name
from drift.recipe import SECTIONS, Recipe, flatten, keys_of

BASE = "base"
WEIGHTED, PREFERENCE, ONLINE = "weighted", "preference", "online"
# What a method of each trainer may change; the rest is what makes methods comparable.
OPEN = {
    WEIGHTED: ("weights", "training", "rounds"),
    PREFERENCE: (PREFERENCE,),
    ONLINE: (ONLINE,),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train from rollouts.

    Args:
        summary: what it is, in a line.
        trainer: weighted (drift's own), preference (DPO and KTO through TRL), or online (GRPO through TRL).
        overrides: keys, dotted, and their values: of the recipe, or those of ``PreferenceConfig`` and ``OnlineConfig``
            after ``preference.`` and ``online.``.
    """

    summary: str
    trainer: str = WEIGHTED
    overrides: Mapping[str, Any] = field(default_factory=dict)


def _weighting(name: Any, summary: str, **more: Any) -> Method:
    return Method(summary=summary, overrides={"weights.scheme": name, **more})


def _step(name: str) -> dict[str, Any]:
    return {"weights.steps": [name]}


def _shaped(loss: str, summary: str, scheme: Any = "rft", **more: Any) -> Method:
    return _weighting(scheme, summary, **{"training.loss": loss, **more})


def _topr(failures: float) -> Method:
    summary = f"successes, and failures as {failures:.0%} of the rows, whose push ends (TOPR)"
    return _shaped("tapered", summary, {"topr": {"failures": failures}})


def _preference(format: str, summary: str) -> Method:
    return Method(summary=summary, trainer=PREFERENCE, overrides={"preference.format": format})


METHODS: dict[str, Method] = {
    "drift": _weighting("drift", "DRIFT (Eq. 12, 13), the last reply of each conversation"),
    "drift-no-repetition": _weighting("drift", "DRIFT without the repetition penalty", **{"weights.repetition": 0.0}),
    "drift-format": _weighting("drift", "DRIFT, 0.1 for each unreadable reply", **{"weights.format_failure": 0.1}),
    "drift-all-turns": _weighting("drift", "DRIFT, every reply trained", **{"weights.turns": "all"}),
    "drift-credited": _weighting("drift", "DRIFT, every reply but rejected ones", **{"weights.turns": "credited"}),
    "drift-mean": _weighting("drift", "DRIFT, mean over a reply's tokens", **{"training.normalization": "mean"}),
    "drift-drop": _weighting("drift", "DRIFT without prompts that have no success", **_step("drop_unsolved")),
    "drift-shrink": _weighting("drift", "DRIFT, less weight for prompts without success", **_step("shrink_unsolved")),
    "drift-auto": _weighting("drift", "DRIFT, β at which as many count as succeed", **{"weights.beta": "auto"}),
    "drift-averaged": _weighting("drift_averaged", "DRIFT with luck averaged over conversations that said the same"),
    "drift-refresh": _weighting("drift", "DRIFT in two rounds, the second on rollouts of its own", rounds=2),
    "sft": _weighting("sft", "every conversation weighs 1"),
    "rft": _weighting("rft", "successes alone"),
    "star": _weighting("star", "successes that took more than one turn (STaR)"),
    "star-gate": _weighting("star_gate", "the best conversation of each prompt (STaR-GATE)"),
    "bolt": _weighting("bolt", "single-turn DRIFT, the first reply (BOLT)"),
    "refit": _weighting("refit", "the return as weight of every reply (Refit)"),
    "refit-terminal": _weighting("refit", "the return as weight of the last reply", **{"weights.turns": "terminal"}),
    "swift": _weighting("swift", "the return, standardised within its prompt, every reply (Swift)"),
    "swift-terminal": _weighting("swift", "the standardised return, the last reply", **{"weights.turns": "terminal"}),
    "group-relative": _weighting("group_relative", "the return less its prompt's mean, every reply"),
    "rwr": _weighting("rwr", "reward-weighted regression"),
    "awr": _weighting("awr", "advantage-weighted regression"),
    "asymre": _weighting("asymre", "the return less a baseline below its prompt's mean, the last reply (AsymRE)"),
    "topr-10": _topr(0.1),
    "topr-30": _topr(0.3),
    "advantage": _shaped(
        "tapered",
        "what each reply was worth, from the tree of the prompt's conversations",
        **{"weights.turns": "advantage", "weights.steps": [{"bound_negative": 0.43}]},
    ),
    "importance": _shaped("importance", "successes by their clipped ratio to the sampling policy (iw-SFT)"),
    "token-probability": _shaped("token_probability", "successes, each token by its probability (DFT)"),
    "anchored": _shaped("anchored", "the same with a KL to the sampling policy (ASFT)"),
    "regression": _shaped(
        "advantage_regression",
        "squared regression of the log-ratio on the advantage (OAPL)",
        "drift",
        **{"weights.turns": "all", "weights.steps": [{"skip_small": None}]},
    ),
    "rft-refresh": _weighting("rft", "successes alone, in two rounds, the second on rollouts of its own", rounds=2),
    "dpo": _preference("dpo", "DPO on pairs of conversations"),
    "dpo-final": _preference("dpo-final", "DPO on pairs of last replies"),
    "dpo-step": _preference("dpo-step", "DPO on pairs of replies to one history"),
    "kto": _preference("kto", "KTO on conversations, good and bad"),
    "grpo": Method(summary="online GRPO on conversations of its own", trainer=ONLINE),
}


def own_methods(given: Mapping[str, Any], where: str) -> dict[str, Method]:
    """Methods that a file defines: overrides by name, dotted or nested.

    Raises:
        ConfigError: a key that no recipe has or that a method may not change, or a name that is taken.
    """
    found = {}
    for name, overrides in given.items():
        place = f"{where}, method {name!r}"
        if name == BASE or name in METHODS:
            raise ConfigError(f"{place}: there is a method of that name already. Give it another.")
        check_folder_name(str(name), place)
        if not isinstance(overrides, Mapping):
            raise ConfigError(f"{place}: got {overrides!r}, expected recipe keys and values, like weights.beta: 0.3.")
        flat = flatten(overrides, (*SECTIONS, PREFERENCE, ONLINE))
        trainer = flat.pop("trainer", WEIGHTED)
        require(trainer in OPEN, f"{place}: trainer", trainer, ", ".join(OPEN))
        checked = _checked(flat, place, OPEN[trainer])
        summary = ", ".join(f"{key} {value}" for key, value in checked.items())
        found[str(name)] = Method(summary=summary, trainer=trainer, overrides=checked)
    return found


def find_methods(names: Iterable[str], own: Mapping[str, Method]) -> dict[str, Method]:
    """The methods called ``names``; raises ``ConfigError`` with the nearest known name for one that there isn't."""
    known = {**METHODS, **own}
    for name in names:
        if name not in known:
            raise unknown_name("method", name, known)
    return {name: known[name] for name in names}


def own_overrides(method: Method, prefix: str) -> dict[str, Any]:
    """What a method changes of another trainer's settings, without the prefix of their keys."""
    return {key.removeprefix(f"{prefix}."): value for key, value in method.overrides.items()}


def _checked(flat: Mapping[str, Any], where: str, open_: tuple[str, ...]) -> dict[str, Any]:
    """Values as the keys' types have them; raises ``ConfigError`` for keys and values that don't fit."""
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    known = {
        **keys_of(Recipe),
        **keys_of(PreferenceConfig, f"{PREFERENCE}."),
        **keys_of(OnlineConfig, f"{ONLINE}."),
    }
    found = {}
    for key, value in flat.items():
        if key not in known:
            raise unknown_name("key", key, [name for name in known if name.split(".")[0] in open_], where=where)
        if key.split(".")[0] not in open_:
            raise ConfigError(
                f"{where}: got {key}, expected keys of {', '.join(open_)}: the rest is shared by all methods, "
                "or belongs to another trainer."
            )
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=known[key])
        try:
            found[key] = parser.parse_object({"value": value}).value
        except ArgumentError as error:
            raise ConfigError(f"{where}: {key}: {' '.join(str(error).split())}.") from error
    return found
