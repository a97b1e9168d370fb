"""What follows for a config from measurements, by table, and what holds of every change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.loading import load
from config.patching import patched
from config.problems import ConfigError
from config.settings import ThresholdSettings
from routing.pools import Speculation
from routing.priors import TASK_RULES, TaskRule
from routing.tasks import TaskType
from tests.tuning.handmade import SPEEDS, bench, cell, curve, replay, sweep
from turnout.tuning.recommend.rules import (
    COOL,
    Change,
    applied,
    diff,
    differing,
    from_bench,
    from_replay,
    from_sweep,
    patch_of,
)

GAINS, LOSES, OPEN, UNKNOWN = "gains", "loses", "can't tell", ""
CONFIG: dict[str, Any] = {
    "auth": {"open": True},
    "policy": "adaptive",
    "pools": [{"name": "spec", "backends": ["http://a:1"]}],
    "thresholds": {"max_temperature": 0.9, "in_flight": {"high": 12, "low": 6}},
}


def values(changes: Sequence[Change]) -> dict[str, Any]:
    return {".".join(change.key): change.value for change in changes}


# --- sweep ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ({0.0: GAINS, 0.7: GAINS, 1.0: GAINS}, "always"),
        ({0.0: LOSES, 0.7: LOSES, 1.0: LOSES}, "never"),
        ({0.0: GAINS, 0.4: GAINS, 0.7: LOSES, 1.0: LOSES}, "cool"),
        ({0.0: GAINS, 0.4: OPEN, 0.7: OPEN, 1.0: LOSES}, "cool"),
        ({0.0: GAINS, 1.0: UNKNOWN}, "always"),
        ({0.0: GAINS, 0.7: GAINS, 1.0: OPEN}, None),
        ({0.0: OPEN, 0.7: LOSES, 1.0: LOSES}, None),
        ({0.0: GAINS, 0.4: LOSES, 1.0: LOSES}, None),
        ({0.0: LOSES, 1.0: GAINS}, None),
        ({0.0: GAINS, 0.7: GAINS, 1.0: LOSES}, None),
        ({0.0: OPEN, 1.0: OPEN}, None),
        ({0.0: UNKNOWN, 1.0: UNKNOWN}, None),
    ],
    ids=[
        *("all gain", "all lose", "gains while cool", "gains while cool, as far as is known"),
        *("a cell without pairs has no say", "one is open", "none gains", "loses while cool"),
        *("gains while hot", "gains above cool too", "all open", "nothing measured"),
    ],
)
def test_a_task_has_a_verdict_where_its_cells_speak_for_one(
    effects: Mapping[float, str], verdict: str | None
) -> None:
    shipped = {"rag": "always", "chat": "cool", "roleplay": "never"}
    cells = [cell(task, at, effect) for task in shipped for at, effect in effects.items()]
    other = [cell("qa", at, OPEN) for at in effects]  # so that no temperature is shut for all

    assert values(from_sweep(sweep(*cells, *other))) == {
        f"thresholds.tasks.ngram.{task}": verdict
        for task, rule in shipped.items()
        if verdict not in (None, rule)
    }


def test_a_verdict_that_is_shipped_is_no_change() -> None:
    shipped = {GAINS: TaskRule.ALWAYS, LOSES: TaskRule.NEVER}
    for effect, rule in shipped.items():
        tasks = [task for task, known in TASK_RULES[Speculation.NGRAM].items() if known is rule]
        cells = [cell(task, at, effect) for task in tasks for at in (0.0, 1.0)]

        assert len(tasks) > 2
        assert from_sweep(sweep(*cells)) == []


def test_a_shipped_verdict_is_a_change_where_the_config_writes_another() -> None:
    results = sweep(cell("code_edit", 0.0, "gains"), cell("code_edit", 1.0, "gains"))

    def given(rule: str, method: str = "ngram") -> dict[str, Any]:
        config = {"thresholds": {"tasks": {method: {"code_edit": rule}}}}
        return values(differing(from_sweep(results, config), config))

    assert given("never") == {"thresholds.tasks.ngram.code_edit": "always"}
    assert given("always") == {}
    assert given("never", method="eagle3") == {}


@pytest.mark.parametrize(("cool", "new"), [(0.5, 0.3), (0.3, None), (0.1, None), (None, None)])
def test_a_lower_max_temperature_takes_a_written_cool_one_along(
    cool: float | None, new: float | None
) -> None:
    """The config does not allow it above."""
    config = {"thresholds": {"cool_temperature": cool}}

    changes = from_sweep(sweep(cell("rag", 0.3, OPEN), cell("rag", 1.0, LOSES)), config)

    assert values(changes)["thresholds.max_temperature"] == 0.3
    assert values(changes).get("thresholds.cool_temperature") == new
    assert applied(config, changes)


def test_a_verdict_is_of_the_method_that_was_swept() -> None:
    cells = [cell("translation", 0.0, GAINS), cell("translation", 1.0, GAINS)]

    found = {
        speculation: values(from_sweep(sweep(*cells, speculation=speculation)))
        for speculation in ("ngram", "eagle3")
    }

    assert found == {
        name: {f"thresholds.tasks.{name}.translation": "always"} for name in ("ngram", "eagle3")
    }


def test_a_verdict_carries_the_speed_of_every_cell() -> None:
    (change,) = from_sweep(
        sweep(cell("chat", 0.0, GAINS), cell("chat", 0.7, GAINS), cell("chat", 1.0, UNKNOWN))
    )

    assert change.because == (
        "sweep: chat@0 1.40x (1.20-1.60), chat@0.7 1.40x (1.20-1.60), chat@1 -"
    )


def test_tasks_of_the_users_own_have_no_verdict() -> None:
    """A sweep's prompts may have tasks by any name, and a config only knows its own."""
    assert from_sweep(sweep(cell("invoices", 0.0, GAINS), cell("invoices", 1.0, GAINS))) == []


@pytest.mark.parametrize(
    ("code", "chat", "highest"),
    [
        ({0.0: GAINS, 0.7: OPEN, 1.0: LOSES}, {0.0: OPEN, 0.7: GAINS, 1.0: LOSES}, 0.7),
        ({0.0: GAINS, 0.7: LOSES, 1.0: LOSES}, {0.0: OPEN, 0.7: LOSES, 1.0: LOSES}, 0.0),
        ({0.0: GAINS, 1.0: LOSES}, {0.0: OPEN, 1.0: UNKNOWN}, 0.0),
        ({0.0: GAINS, 1.0: LOSES}, {0.0: OPEN, 1.0: OPEN}, None),
        ({0.0: GAINS, 1.0: LOSES}, {0.0: OPEN, 1.0: GAINS}, None),
        ({0.0: LOSES, 1.0: LOSES}, {0.0: LOSES, 1.0: LOSES}, None),
        ({0.0: LOSES, 1.0: OPEN}, {0.0: LOSES, 1.0: OPEN}, None),
        ({0.0: OPEN, 0.7: LOSES, 1.0: OPEN}, {0.0: OPEN, 0.7: LOSES, 1.0: OPEN}, None),
        ({}, {}, None),
    ],
    ids=[
        *("all lose at the highest", "at two", "one was not measured"),
        *("one is open", "one gains", "nothing is left", "the cool lose", "between others"),
        "no cells",
    ],
)
def test_the_highest_temperature_is_that_above_which_every_task_loses(
    code: Mapping[float, str], chat: Mapping[float, str], highest: float | None
) -> None:
    cells = [
        cell(task, at, effect)
        for task, effects in (("code", code), ("chat", chat))
        for at, effect in effects.items()
    ]

    assert values(from_sweep(sweep(*cells))).get("thresholds.max_temperature") == highest


LOW, MIDDLE, HIGH = (
    cell("roleplay", 1.0, LOSES, acceptance=0.42),
    cell("qa", 0.4, OPEN, acceptance=0.55),
    cell("code", 0.0, GAINS, acceptance=0.70),
)


@pytest.mark.parametrize("speculation", ["draft_model", "eagle3", "mtp"])
def test_the_least_acceptance_is_between_cells_that_lose_and_that_gain(speculation: str) -> None:
    worse = cell("creative", 1.0, LOSES, acceptance=0.2)
    better = cell("code_edit", 0.0, GAINS, acceptance=0.9)

    found = from_sweep(sweep(worse, LOW, MIDDLE, HIGH, better, speculation=speculation))

    (change,) = (each for each in found if each.key == ("thresholds", "min_acceptance"))
    assert change.value == 0.56
    assert change.because == (
        "sweep: roleplay@1 loses at 0.42 accepted / drafted, code@0 gains at 0.70, one request at "
        "a time"
    )


@pytest.mark.parametrize(
    ("cells", "speculation"),
    [
        ((LOW, HIGH), "ngram"),
        ((LOW, HIGH), "suffix"),
        ((LOW, MIDDLE), "eagle3"),
        ((MIDDLE, HIGH), "eagle3"),
        ((LOW, cell("code", 0.0, GAINS, acceptance=0.40)), "eagle3"),
        ((cell("roleplay", 1.0, LOSES), HIGH), "eagle3"),
    ],
    ids=[
        *("n-gram drafts where it matches only", "so does suffix decoding", "none gains"),
        *("none loses", "one gains where another loses", "acceptance is not known"),
    ],
)
def test_there_is_no_least_acceptance_otherwise(
    cells: Sequence[Mapping[str, Any]], speculation: str
) -> None:
    found = values(from_sweep(sweep(*cells, speculation=speculation)))

    assert "thresholds.min_acceptance" not in found


CELLS = st.lists(
    st.builds(
        lambda task, at, effect, acceptance: cell(task, at, effect, acceptance=acceptance / 100),
        st.sampled_from(["code", "chat", "creative"]),
        st.sampled_from([0.0, 0.4, 0.7, 1.0]),
        st.sampled_from([*SPEEDS, UNKNOWN]),
        st.integers(1, 99),
    ),
    unique_by=lambda each: (each["task"], each["temperature"]),
)
METHODS = st.sampled_from(["ngram", "eagle3"])


@given(cells=CELLS, method=METHODS)
def test_no_change_speaks_against_a_cell_that_was_measured(
    cells: Sequence[Mapping[str, Any]], method: str
) -> None:
    """What is written binds every policy, so nothing that gains may be shut out by it."""
    known = [each for each in cells if each["speed"]]
    gaining, losing = ([each for each in known if each["effect"] == e] for e in (GAINS, LOSES))

    for change in from_sweep(sweep(*cells, speculation=method)):
        task = change.key[-1]
        if change.key == ("thresholds", "max_temperature"):
            assert all(each["temperature"] <= change.value for each in gaining)
        elif change.key == ("thresholds", "min_acceptance"):
            assert all(each["acceptance"][0] >= change.value for each in gaining)
            assert all(each["acceptance"][0] <= change.value for each in losing)
        elif change.value == "always":
            assert task not in {each["task"] for each in losing}
        elif change.value == "never":
            assert task not in {each["task"] for each in gaining}
        else:
            assert change.value == "cool"
            for each in known:
                if each["task"] == task:
                    against = LOSES if each["temperature"] <= COOL else GAINS
                    assert each["effect"] != against


@given(cells=CELLS, method=METHODS)
def test_whatever_was_swept_the_config_and_the_admin_api_take_what_follows(
    cells: Sequence[Mapping[str, Any]], method: str
) -> None:
    changes = from_sweep(sweep(*cells, speculation=method))

    made = applied({}, changes)

    thresholds = patched(ThresholdSettings(), patch_of(changes))
    assert thresholds == ThresholdSettings.model_validate(made.get("thresholds", {}))
    assert differing(changes, made) == []


@given(cells=CELLS, method=METHODS)
def test_what_is_open_changes_nothing(cells: Sequence[Mapping[str, Any]], method: str) -> None:
    open_ = [{**each, "effect": OPEN, "speed": SPEEDS[OPEN]} for each in cells]

    assert from_sweep(sweep(*open_, speculation=method)) == []


# --- bench ----------------------------------------------------------------------------------


CODE = curve("code@0.2", {1: 2.0, 8: 1.2, 16: 0.9}, [12.4, 9.0, 15.0])
ECHO = curve("extraction@0.2", {1: 4.0, 16: 2.0, 32: 0.5}, [22.6, 18.0, 29.0])
STORY = curve("creative@1", {1: 0.8, 4: 0.7, 16: 0.6}, [0.0, 0.0, 0.0])
ENDLESS = curve("code_edit@0.2", {1: 4.0, 16: 3.0, 32: 2.0}, [None, None, None])


THRESHOLD = {"policy": "threshold"}
MIX = "code@0.2=30,extraction@0.2=10,creative@1=35,code_edit@0.2=5"


@pytest.mark.parametrize(
    ("curves", "high", "because"),
    [
        ((CODE,), 11, "no kind gains beyond: code@0.2 is the last to stop, at 12.4 in flight"),
        ((ECHO, CODE), 21, "no kind gains beyond: extraction@0.2 is the last to stop, at 22.6"),
        ((CODE, STORY), 11, "no kind gains beyond: code@0.2 is the last to stop"),
    ],
    ids=["one", "the last of two", "one that never gains has no say"],
)
def test_adaptive_has_a_mark_only_where_no_kind_gains_any_more(
    curves: Sequence[Mapping[str, Any]], high: int, because: str
) -> None:
    (change,) = from_bench(bench(*curves, mix=MIX))

    marks = {"high": high, "low": 0.75 * high}
    assert (change.key, change.value) == (("thresholds", "in_flight"), marks)
    assert change.because.startswith(f"bench: {because}")
    assert applied({}, [change]) == {"thresholds": {"in_flight": marks}}


@pytest.mark.parametrize(
    "curves",
    [
        (),
        (STORY,),
        (ENDLESS,),
        (CODE, ENDLESS),
        (curve("code@0.2", {1: 2.0, 16: 0.98}, [15.0, 11.0, None]),),
        (curve("code@0.2", {1: 1.02, 2: 0.9}, [1.2, 0.0, 1.7]),),
    ],
    ids=[
        *("no curves", "no gain", "no end of a gain", "one goes on", "it may go on"),
        "it may be none",
    ],
)
def test_adaptive_has_no_mark_where_a_gain_may_go_on(curves: Sequence[Mapping[str, Any]]) -> None:
    """A mark binds every policy: one where the first kind stops would shed what gains there."""
    assert from_bench(bench(*curves, mix=MIX)) == []


def test_threshold_has_one_where_kinds_that_gain_stop_by_how_often_they_come() -> None:
    ladder = (1, 8, 16, 32)
    code = curve("code@0.2", dict(zip(ladder, (1.5, 0.9, 0.7, 0.6), strict=True)), [6.5, 5.0, 8.0])
    echo = curve("extraction@0.2", dict.fromkeys(ladder, 2.0), [None, None, None])

    often, seldom = (
        from_bench(bench(code, echo, STORY, mix=mix), THRESHOLD)
        for mix in (
            "code@0.2=30,extraction@0.2=10,creative@1=35",
            "code@0.2=10,extraction@0.2=30,creative@1=35",
        )
    )

    (change,) = often  # code 3 : echo 1, so that (0.9^3 x 2)^(1/4) > 1 > (0.7^3 x 2)^(1/4)
    assert 8 < change.value["high"] < 16
    assert change.because.startswith(
        "bench: kinds that gain, by how often they come, together stop at 1"
    )
    assert seldom == []  # (0.6 x 2^3)^(1/4) > 1: together they never stop


def test_threshold_has_no_mark_where_its_kinds_may_not_gain_at_first_or_may_go_on() -> None:
    slight = curve("code@0.2", {1: 1.04, 8: 0.5}, [1.2, 0.5, 2.0])
    slow = curve("code@0.2", {1: 1.5, 8: 0.98}, [7.5, 6.0, None])

    assert from_bench(bench(slight, mix=MIX), THRESHOLD) == []
    assert from_bench(bench(slow, mix=MIX), THRESHOLD) == []


# --- replay ---------------------------------------------------------------------------------


def test_a_policy_that_is_surely_faster_is_recommended() -> None:
    (change,) = from_replay(replay())

    assert (change.key, change.value) == (("policy",), "threshold")
    assert change.because == "replay: mean E2E -20.0% (-30.0% to -10.0%) over 400 requests"
    assert not change.is_threshold


@pytest.mark.parametrize(
    "results",
    [
        replay(change=(-0.1, -0.3, 0.0)),
        replay(change=(0.2, 0.1, 0.3)),
        replay(change=None),
        replay(growth={"spec": 0.2, "plain": 1.3}),
        replay(policy="mine"),
    ],
    ids=["may be none", "slower", "not known", "loads would not hold", "no policy of ours"],
)
def test_no_policy_is_recommended_otherwise(results: Mapping[str, Any]) -> None:
    assert from_replay(results) == []


# --- configs --------------------------------------------------------------------------------


def change(key: str, value: Any) -> Change:
    return Change(key=tuple(key.split(".")), value=value, because="it was measured")


CHANGES = [
    change("thresholds.max_temperature", 0.4),
    change("thresholds.tasks.ngram.code", "never"),
    change("thresholds.tasks.eagle3.chat", "cool"),
    change("thresholds.in_flight", {"high": 7, "low": 5.25}),
    change("policy", "threshold"),
]


def test_what_a_config_has_already_is_no_change() -> None:
    config = {"policy": "threshold", "thresholds": {"tasks": {"ngram": {"code": "never"}}}}

    assert differing(CHANGES, config) == [CHANGES[0], CHANGES[2], CHANGES[3]]
    assert differing(CHANGES, {}) == CHANGES


def test_the_last_change_of_a_setting_wins() -> None:
    twice = [change("policy", "spec_only"), CHANGES[0], change("policy", "threshold")]

    assert values(differing(twice, CONFIG)) == {
        "policy": "threshold",
        "thresholds.max_temperature": 0.4,
    }
    assert differing([twice[0], change("policy", "adaptive")], CONFIG) == []
    assert applied(CONFIG, twice)["policy"] == "threshold"


def test_a_changed_config_is_valid_and_keeps_the_rest(tmp_path: Path) -> None:
    before = yaml.safe_dump(CONFIG)

    made = applied(CONFIG, CHANGES)

    file = tmp_path / "turnout.yaml"
    file.write_text(yaml.safe_dump(made))
    settings = load(file, environ={})
    assert settings.policy == "threshold"
    assert settings.thresholds.max_temperature == 0.4
    assert settings.thresholds.in_flight.high == 7
    assert settings.thresholds.tasks == {
        Speculation.NGRAM: {TaskType.CODE: TaskRule.NEVER},
        Speculation.EAGLE3: {TaskType.CHAT: TaskRule.COOL},
    }
    assert made["pools"] == CONFIG["pools"]
    assert yaml.safe_dump(CONFIG) == before


@pytest.mark.parametrize(
    "config",
    [
        *({}, {"thresholds": None}, {"thresholds": {}}),
        *({"thresholds": {"tasks": None}}, {"thresholds": {"tasks": {}}}),
    ],
)
def test_sections_that_are_not_there_or_empty_are_made(config: Mapping[str, Any]) -> None:
    made = applied(config, CHANGES[:2])

    assert applied(config, []) == config
    assert made == {"thresholds": {"max_temperature": 0.4, "tasks": {"ngram": {"code": "never"}}}}


def test_a_change_that_another_setting_forbids_is_refused() -> None:
    config = {"thresholds": {"cool_temperature": 0.5}}

    with pytest.raises(ConfigError, match="cool_temperature"):
        applied(config, [CHANGES[0]])


def test_a_patch_has_the_thresholds_alone_as_the_admin_api_takes_them() -> None:
    patch = patch_of(CHANGES)

    assert patch == {
        "max_temperature": 0.4,
        "tasks": {"ngram": {"code": "never"}, "eagle3": {"chat": "cool"}},
        "in_flight": {"high": 7, "low": 5.25},
    }
    after = patched(ThresholdSettings.model_validate(CONFIG["thresholds"]), patch)
    assert after.model_dump(mode="json", exclude_unset=True) == patch


def test_a_patch_sets_what_the_changed_config_says() -> None:
    written = ThresholdSettings.model_validate(CONFIG["thresholds"])

    after = patched(written, patch_of(CHANGES))

    changed = applied(CONFIG, CHANGES)["thresholds"]
    assert after == ThresholdSettings.model_validate(changed)


def test_a_diff_shows_what_goes_what_comes_and_why() -> None:
    assert diff([CHANGES[3], CHANGES[1], CHANGES[4]], CONFIG).splitlines() == [
        "  thresholds:",
        "-   in_flight: {high: 12, low: 6}",
        "+   in_flight: {high: 7, low: 5.25}",
        "      # it was measured",
        "  thresholds:",
        "    tasks:",
        "      ngram:",
        "+       code: never",
        "          # it was measured",
        "- policy: adaptive",
        "+ policy: threshold",
        "    # it was measured",
    ]


def at(config: Any, key: Sequence[str]) -> Any:
    for name in key:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


@pytest.mark.parametrize("each", CHANGES, ids=lambda each: ".".join(each.key))
@pytest.mark.parametrize("config", [CONFIG, {}], ids=["a config", "none"])
def test_the_lines_of_a_diff_are_the_change(each: Change, config: Mapping[str, Any]) -> None:
    lines = diff([each], config).splitlines()

    after = yaml.safe_load("\n".join(line[2:] for line in lines if line[0] != "-"))
    assert after == applied({}, [each])
    before = yaml.safe_load("\n".join(line[2:] for line in lines if line[0] != "+"))
    assert at(before, each.key) == at(config, each.key)
    assert sum(line[0] == "-" for line in lines) == (at(config, each.key) is not None)


def test_no_change_is_no_diff() -> None:
    assert diff([], CONFIG) == ""
