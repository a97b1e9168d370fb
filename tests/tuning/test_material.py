"""Prompts: built-in ones by what the gateway sees in them, those of a file by its lines."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routing.features import Route, extract
from routing.tasks import TaskType, classify
from turnout.tuning.material import TASKS, Prompt, built_in, kinds, of_file, prompts
from turnout.tuning.prompts import KINDS
from turnout.tuning.report import TuningError


def seen_as(prompt: Prompt) -> TaskType:
    return classify(extract(Route.CHAT, {**prompt.body, "messages": list(prompt.messages)})).task


@pytest.mark.parametrize("task", TASKS)
def test_built_in_prompts_are_all_different(task: TaskType) -> None:
    found = built_in(task, count=300, seed=0)

    assert len({each.messages[0]["content"] for each in found}) == 300


@pytest.mark.parametrize("task", TASKS)
def test_built_in_prompts_are_seen_by_the_gateway_as_their_task(task: TaskType) -> None:
    found = built_in(task, count=100, seed=0)

    assert {each.task for each in found} == {task.value}
    assert {seen_as(each) for each in found} == {task}


@pytest.mark.parametrize("task", TASKS)
def test_only_structured_prompts_ask_for_a_format(task: TaskType) -> None:
    structured = task is TaskType.STRUCTURED
    body = {"response_format": {"type": "json_object"}} if structured else {}

    assert [each.body for each in built_in(task, count=2, seed=0)] == [body] * 2


@given(task=st.sampled_from(TASKS), seed=st.integers(0, 1000), count=st.integers(1, 20))
def test_a_seed_tells_which_prompts_there_are_and_more_of_them_go_on(
    task: TaskType, seed: int, count: int
) -> None:
    found = prompts(task, count=count, seed=seed)

    assert prompts(task, count=count + 5, seed=seed)[:count] == found


@pytest.mark.parametrize("task", TASKS)
def test_another_seed_gives_other_prompts(task: TaskType) -> None:
    mine, others = (set(prompts(task, count=50, seed=seed)) for seed in (0, 1))

    assert len(mine & others) < 10


def test_kinds_of_a_mix_have_prompts_of_their_own() -> None:
    names = [kind.name for kind in KINDS]
    shares = {name: 1.0 + number for number, name in enumerate(names)}

    found = kinds(shares, dict.fromkeys(names, 0.5), count=10, seed=1)

    assert {each.name: each.share for each in found} == shares
    assert {each.temperature for each in found} == {0.5}
    assert len({text for each in found for text in each.prompts}) == 10 * len(names)


def lines(folder: Path, *texts: str) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(texts), encoding="utf-8")
    return file


def test_a_line_has_a_prompt_or_messages_and_a_task_of_any_name(tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        '{"prompt": "Add a test.", "task": "code"}',
        "",
        '{"messages": [{"role": "system", "content": "Be brief."},'
        ' {"role": "user", "content": "Hi"}], "task": "support desk"}',
        '{"prompt": "And another.", "task": "code", "body": {"top_p": 0.9}}',
        "",
    )

    found = of_file(file)

    assert list(found) == ["code", "support desk"]
    assert [each.messages for each in found["code"]] == [
        [{"role": "user", "content": "Add a test."}],
        [{"role": "user", "content": "And another."}],
    ]
    assert [each.body for each in found["code"]] == [{}, {"top_p": 0.9}]
    assert [each["role"] for each in found["support desk"][0].messages] == ["system", "user"]


@pytest.mark.parametrize("task", TASKS)
def test_without_a_task_the_gateways_own_guess_stands(task: TaskType, tmp_path: Path) -> None:
    (prompt,) = built_in(task, count=1, seed=0)
    line = {"messages": list(prompt.messages), "body": dict(prompt.body)}

    assert list(of_file(lines(tmp_path, json.dumps(line)))) == [task.value]


@example("one\u2028two\u2029three\x85four")
@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """JSON may hold U+2028 and U+0085 as they are, at which `str.splitlines` would end a line."""
    line = json.dumps({"prompt": text, "task": "chat"}, ensure_ascii=False)

    (found,) = of_file(lines(tmp_path_factory.mktemp("any"), line))["chat"]

    assert found.messages == [{"role": "user", "content": text}]


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "a", "task": "x"}\r\n{"prompt": "b", "task": "x"}\r\n')

    assert len(of_file(file)["x"]) == 2


GOOD = '{"prompt": "Hi", "task": "chat"}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "Write a po', "is not whole JSON"),
        ('{"prompt": "a"} {"prompt": "b"}', "is not whole JSON"),
        ("Write a poem.", "is not whole JSON"),
        ('{"task": "code"}', 'has neither "prompt" (text) nor "messages" (a list)'),
        ('{"prompt": 3}', 'has neither "prompt"'),
        ('{"messages": []}', 'has neither "prompt"'),
        ('{"messages": "Hi"}', 'has neither "prompt"'),
        ('["Hi"]', 'has neither "prompt"'),
        ("null", 'has neither "prompt"'),
        ('{"messages": ["Hi"]}', "'Hi' in \"messages\" is no object"),
        ('{"prompt": "a", "body": [1]}', '"body" is [1], not an object'),
        ('{"prompt": "a", "body": null}', '"body" is None, not an object'),
        ('{"prompt": "a", "task": ["code"]}', "\"task\" is ['code'], not a name"),
    ],
)
def test_a_bad_line_is_told_in_one_sentence_with_its_number(
    line: str, said: str, tmp_path: Path
) -> None:
    file = lines(tmp_path, GOOD, "", line)

    with pytest.raises(TuningError) as raised:
        of_file(file)

    assert str(raised.value).startswith(f"prompts {file}, line 3")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_an_empty_file_is_told_what_a_line_is(text: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(TuningError, match=r'prompts\.jsonl is empty; a line is {"prompt"'):
        of_file(file)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\xff")

    with pytest.raises(TuningError, match=r"nowhere\.jsonl can't be read: .*No such file"):
        of_file(tmp_path / "nowhere.jsonl")
    with pytest.raises(TuningError, match=r"packed can't be read: "):
        of_file(tmp_path / "packed")
