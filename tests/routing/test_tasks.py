"""What is declared decides; then what the text shows."""

from typing import Any

import pytest

from routing import lexicon
from routing.features import Route, extract
from routing.tasks import CUES, TaskGuess, TaskType, classify
from tests.routing.prompts import ARTICLE, SINGLE, TALKS, WEATHER, chat
from tests.routing.scoring import confusion, macro_f1


def guess(
    body: dict[str, Any], *, route: Route = Route.CHAT, declared: str | None = None
) -> TaskGuess:
    return classify(extract(route, body, declared_task=declared))


POEM = chat(("user", "Write a poem about fog."))
SHAPE_SIGNALS = {
    "several quantities", "several math words", "into a language", "asks for a fact",
    "asks openly", "opens with a role",
    "long text", "labelled question", "short line", "many lines", "question mark",
    "question after a passage", "several questions", "digits", "money or percent", "formula",
    "JSON in the prompt", "code body", "code line", "much code", "code first", "prose before code",
    "code in the last answer",
}  # fmt: skip


def test_the_clients_own_word_decides() -> None:
    body = POEM | {"response_format": {"type": "json_object"}}

    assert guess(body, declared=" QA ") == TaskGuess(
        task=TaskType.QA, evidence=("declared by the client",)
    )


def test_a_declared_task_without_meaning_is_ignored_and_said_so() -> None:
    found = guess(POEM, declared="poetry")

    assert found.task is TaskType.CREATIVE
    assert found.evidence[-1] == "declared task is not a known name"


def test_an_output_constraint_decides_over_the_text() -> None:
    found = guess(POEM | {"structured_outputs": {"choice": ["yes", "no"]}})

    assert found == TaskGuess(task=TaskType.STRUCTURED, evidence=("output constraint choice",))


def test_a_forced_tool_call_decides_over_the_text() -> None:
    found = guess(POEM | {"tools": WEATHER, "tool_choice": "required"})

    assert found == TaskGuess(task=TaskType.STRUCTURED, evidence=("tool call required",))


def test_tools_offered_speak_for_a_call_where_a_tool_can_answer() -> None:
    found = guess(chat(("user", "Will it rain in Turin tomorrow?"), tools=WEATHER))

    assert found == TaskGuess(task=TaskType.STRUCTURED, evidence=("tools offered",))


def test_the_answer_to_one_tool_result_is_prose_about_it() -> None:
    question, call = ("user", "Will it rain in Turin?"), ("assistant", "")
    one = chat(question, call, ("tool", '{"rain": 0.8}'), tools=WEATHER)
    many = chat(question, call, ("tool", "..."), call, ("tool", "..."), tools=WEATHER)

    assert guess(one).task is TaskType.RAG
    assert guess(many).task is TaskType.STRUCTURED


@pytest.mark.parametrize(
    ("route", "body", "evidence"),
    [
        (Route.COMPLETIONS, {"prompt": [1, 2, 3]}, "no text"),
        (Route.OTHER, {"input": "Write a poem."}, "no text"),
        (Route.COMPLETIONS, {"prompt": "On the far bank"}, "no signal in a raw completion"),
    ],
)
def test_what_shows_nothing_is_unknown(route: Route, body: dict[str, Any], evidence: str) -> None:
    assert guess(body, route=route) == TaskGuess(task=TaskType.UNKNOWN, evidence=(evidence,))


def test_a_message_that_shows_nothing_is_conversation() -> None:
    assert guess(chat(("user", "lol ok"))) == TaskGuess(
        task=TaskType.CHAT, evidence=("no signal",)
    )


def test_a_raw_completion_of_code_is_code() -> None:
    found = guess({"prompt": "def add(a, b):\n    "}, route=Route.COMPLETIONS)

    assert found.task is TaskType.CODE
    assert "code first" in found.evidence


def test_every_generation_route_reads_the_same_text_alike() -> None:
    text = "Summarize the article below in three sentences.\n\n" + ARTICLE

    tasks = {
        guess(chat(("user", text))).task,
        guess({"prompt": text}, route=Route.COMPLETIONS).task,
        guess({"input": text}, route=Route.RESPONSES).task,
        guess(chat(("user", text)), route=Route.MESSAGES).task,
    }

    assert tasks == {TaskType.SUMMARIZATION}


def test_our_own_prompts_are_told_apart() -> None:
    pairs = [
        (task, guess(chat(("user", text))).task.value)
        for task, prompts in SINGLE.items()
        for text in prompts
    ]

    assert macro_f1(pairs) >= 0.95, confusion(pairs)


@pytest.mark.parametrize(("task", "body"), TALKS)
def test_system_prompt_turns_and_tools_are_taken_into_account(
    task: str, body: dict[str, Any]
) -> None:
    assert guess(body).task == task


def test_evidence_names_signals_and_never_repeats_the_prompt() -> None:
    secret = "Zanzibar-4711"
    bodies = [
        chat(("user", f"{secret} {text}")) for prompts in SINGLE.values() for text in prompts
    ]

    for body in bodies:
        for item in guess(body).evidence:
            assert secret.lower() not in item.lower()
            assert set(item.split(" & ")) <= known_signals() | {"no signal"}


def known_signals() -> set[str]:
    named = {*lexicon.WORDS, *lexicon.PHRASES, *lexicon.OTHER_SCRIPTS}
    verbs = {f"asks to {verb}" for verb in lexicon.VERBS}
    return named | verbs | {f"later: {verb}" for verb in verbs} | SHAPE_SIGNALS


def test_every_signal_that_a_cue_names_exists() -> None:
    named = {signal for cue in CUES for signal in (cue.first, *cue.also, *cue.unless)}

    assert {signal.removeprefix("system: ") for signal in named} <= known_signals()
