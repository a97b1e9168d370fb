import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass


@pytest.mark.parametrize(
    ("temperature", "bucket"),
    [
        (0.0, "T<=0.2"),
        (0.2, "T<=0.2"),
        (0.21, "T<=0.5"),
        (0.5, "T<=0.5"),
        (0.51, "T<=0.7"),
        (0.7, "T<=0.7"),
        (0.71, "T<=1.0"),
        (1.0, "T<=1.0"),
        (1.01, "T>1.0"),
        (2.0, "T>1.0"),
    ],
)
def test_a_temperature_falls_in_the_bucket_whose_upper_edge_it_does_not_exceed(
    temperature: float, bucket: str
) -> None:
    assert TemperatureBucket.of(temperature) == bucket


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_higher_temperature_is_never_in_a_lower_bucket(one: float, other: float) -> None:
    order = list(TemperatureBucket)

    buckets = [order.index(TemperatureBucket.of(t)) for t in sorted((one, other))]

    assert buckets == sorted(buckets)


def test_a_class_is_shown_as_its_task_at_its_bucket() -> None:
    shown = TrafficClass("m", TaskType.CODE_EDIT, TemperatureBucket.UP_TO_02).label

    assert shown == "code_edit@T<=0.2"
