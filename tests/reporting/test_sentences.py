import pytest

from drift.reporting.sentences import chain_line, sentences

REPORT = {
    "outcome": "success",
    "baseline": "task",
    "trajectories": 3200,
    "groups": 200,
    "successes": 1200,
    "mixed_share": 0.455,
    "groups_without_success": 41,
    "groups_with_equal_returns": 50,
    "return_histogram": {"edges": [-0.5, 0.25, 1.0], "counts": [1200, 2000]},
    "zero_weights": 1200,
    "ess": 1234.5,
    "steps": [],
}
LAST = "2,000 conversations have a weight; they count like 1,234 of equal weight."


def test_a_chain_is_a_line_from_outcome_to_steps() -> None:
    record = {
        "outcome": "reward",
        "gamma": 1.0,
        "repetition": 0.0,
        "format_failure": 0.1,
        "scheme": "awr",
        "settings": {"beta": 0.12345, "w_max": 20.0},
        "turns": {"credited": {"rejected": -1}},
        "steps": ["drop_unsolved", {"resample": {"share": 0.5, "seed": 1}}],
        "baseline": "task",
    }
    assert chain_line(record) == (
        "reward (γ 1, λ 0) → awr (beta 0.123, w_max 20) → credited (rejected -1) → drop_unsolved → "
        "resample (share 0.5, seed 1)"
    )


def test_weights_are_told_in_a_few_sentences() -> None:
    assert list(sentences(REPORT)) == [
        "1,200 of 3,200 conversations succeeded (38%).",
        "91 of 200 prompts hold both successes and failures (46%); 41 without any success.",
        LAST,
    ]


def test_rewards_are_told_by_their_returns_and_not_by_successes_that_nobody_judged() -> None:
    logged = {**REPORT, "outcome": "reward", "successes": 0, "mixed_share": 0.0}
    first, second = (
        "3,200 conversations have returns from -0.5 to 1.",
        "150 of 200 prompts have returns that differ (75%).",
    )
    assert list(sentences(logged)) == [first, second, LAST]
    equal = list(sentences({**logged, "groups_with_equal_returns": 200}))
    assert equal[1:] == [
        "0 of 200 prompts have returns that differ (0%).",
        "NO PROMPT HAS RETURNS THAT DIFFER: weights can't tell better from worse within one.",
        LAST,
    ]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"successes": 0, "mixed_share": 0.0}, "NOTHING SUCCEEDED: "),
        ({"mixed_share": 0.0}, "NO PROMPT IS MIXED: "),
    ],
)
def test_data_that_can_not_teach_are_told_aloud(changes: dict[str, float], warning: str) -> None:
    said = list(sentences({**REPORT, **changes}))
    assert said[2].startswith(warning) and said[3:] == [LAST]


@pytest.mark.parametrize(
    ("beta", "sentence"),
    [
        (
            {"value": 0.2345, "effective_share": 0.304},
            "β was found to be 0.234, at which 30% of a prompt's conversations count.",
        ),
        (
            {"value": 0.0, "effective_share": 0.25},
            "β was found to be 0, at which 25% of a prompt's conversations count.",
        ),
        ({"value": None, "effective_share": None}, "β was found to be without effect: all weigh alike."),
    ],
)
def test_a_temperature_that_was_found_is_told(beta: dict[str, float | None], sentence: str) -> None:
    assert list(sentences({**REPORT, "beta": beta}))[2:] == [sentence, LAST]


def test_each_step_tells_what_it_took_and_those_that_took_nothing_are_silent() -> None:
    steps = [
        {"step": "drop_unsolved", "conversations": 656, "share": 0.205},
        {"step": {"bound_negative": {"share": 0.1}}, "conversations": 0, "share": 0.45},
        {"step": "mine:step", "conversations": 0, "share": -0.25},
        {"step": {"resample": {"share": 1.0, "seed": 1}}, "conversations": 2, "share": 0.0},
        {"step": {"skip_small": {"share": 0.001}}, "conversations": 0, "share": 0.0004},
    ]
    assert list(sentences({**REPORT, "steps": steps}))[2:] == [
        "drop_unsolved took 20.5% of the weight; 656 conversations have no weight any more.",
        "bound_negative (share 0.1) took 45.0% of the weight.",
        "mine:step added 25.0% of the weight.",
        "resample (share 1, seed 1) took 0.0% of the weight; 2 conversations have no weight any more.",
        LAST,
    ]
