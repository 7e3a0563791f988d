"""From the weights as computed to those trained: bounds, drawing by weight, and what is not worth computing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.dataset.table import WeightTable
from drift.policies.base import derive_seed
from drift.training.config import TrainingConfig
from drift.training.negative import bounding_factors
from drift.weights.diagnostics import effective_sample_size
from drift.weights.groups import Floats
from drift.weights.resampling import systematic_resampling
from drift.weights.skipping import negligible


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """What conversations weigh in training.

    Attributes:
        weights_N: ``(N,)`` in the order of the table.
        rejected_N: ``(N,)`` weight of each rejected reply in them, for each unit of ``|weights_N|``.
        skipped_N: ``(N,)`` which ones count as rows and are not computed.
        record: what was changed and left out, for the manifest.
    """

    weights_N: Floats
    rejected_N: Floats
    skipped_N: NDArray[np.bool_]
    record: dict[str, Any]


def weights_to_train(
    table: WeightTable, config: TrainingConfig, seed: int, rejections: Mapping[str, int] | None = None
) -> Weighting:
    """The weights of ``table`` as the settings have them trained.

    Args:
        table: weights by conversation.
        config: how they are trained.
        seed: of what is drawn.
        rejections: how many rejected replies a conversation has, by id; none where it isn't given.
    """
    index_N = table.group_index()
    weights_N, rejected_N = table.weights_N, np.full(len(table.ids), config.rejected)
    record: dict[str, Any] = {}
    if config.max_negative_share is not None:
        count_N = np.zeros(len(table.ids))
        if rejections:
            count_N[:] = [rejections.get(name.as_py(), 0) for name in table.ids]
        pushed_N = -config.rejected * count_N
        factor_N, negative = bounding_factors(weights_N, pushed_N, index_N, config.max_negative_share)
        # A rejected reply weighs so much for each unit of |w|, which is bounded already where w < 0.
        rejected_N = np.where(weights_N < 0, rejected_N, rejected_N * factor_N)
        weights_N = np.where(weights_N < 0, weights_N * factor_N, weights_N)
        if pushed_N.any():
            negative["rejected_replies"] = int(count_N[table.weights_N != 0].sum())
        if negative["negative_weights"] or pushed_N.any():
            record["max_negative_share"] = negative
    if not config.resample:
        skipped_N, dropped_G = negligible(weights_N, index_N, config.skip_mass)
        record["dropped_mass"] = float(dropped_G.max(initial=0.0))
        return Weighting(weights_N=weights_N, rejected_N=rejected_N, skipped_N=skipped_N, record=record)
    drawn_N = systematic_resampling(weights_N, index_N, config.resample, derive_seed(seed, "resample"))
    ess = {"before": effective_sample_size(weights_N), "after": effective_sample_size(drawn_N)}
    record |= {"dropped_mass": 0.0, "resampled": {"drawn": int(np.count_nonzero(drawn_N)), "ess": ess}}
    # What was not drawn keeps a weight: it counts as a row.
    return Weighting(
        weights_N=np.where(drawn_N == 0, weights_N, drawn_N),
        rejected_N=rejected_N,
        skipped_N=drawn_N == 0,
        record=record,
    )
