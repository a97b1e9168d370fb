"""What the demo prints: a table per class, one for the load, one for the outage, what is next."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.table import Table

from turnout.tuning.comparison import PLAIN, POOLS, SPEC, Routed
from turnout.tuning.crossover import Cell, Gains, crossover
from turnout.tuning.incidents import Outage, Step

_UNKNOWN = "-"


def class_tables(cells: Sequence[Cell], routed: Sequence[Routed]) -> Iterator[tuple[str, Table]]:
    """Yield a heading and a table for each kind: every pool at every load, then the routed."""
    for chosen in routed:
        kind = chosen.cell.kind
        mine = [cell for cell in cells if cell.kind == kind]
        table = _table("in flight", "pool", "tokens/step", "acceptance", "TTFT ms", "TPOT ms",
                       "vs. other")  # fmt: skip
        for load in sorted({cell.in_flight for cell in mine if cell.in_flight is not None}):
            at_load = {cell.pool: cell for cell in mine if cell.in_flight == load}
            for pool, other in (POOLS, POOLS[::-1]):
                cell = at_load[pool]
                table.add_row(str(load), pool, *_measures(cell), _ratio(cell, at_load[other]))
        table.add_row("routed", chosen.cell.pool, *_measures(chosen.cell), _reasons(chosen))
        yield f"{kind}, seen as {chosen.traffic_class}. Why {chosen.why}", table


def _reasons(routed: Routed) -> str:
    return ", ".join(f"{times} {reason}" for reason, times in routed.by_reason.items())


def _measures(cell: Cell) -> tuple[str, ...]:
    tau = 1.0 if cell.pool == PLAIN else cell.tau  # without drafts a step is a token
    return (_number(tau, "{:.2f}"), _number(cell.acceptance, "{:.2f}"), _ms(cell.ttft_s),
            _ms(cell.tpot_s, "{:.1f}"))  # fmt: skip


def _ratio(cell: Cell, other: Cell) -> str:
    if cell.tpot_s is None or other.tpot_s is None:
        return _UNKNOWN
    return f"{other.tpot_s / cell.tpot_s:.2f}x"


def marks_table(gains: Mapping[str, Gains]) -> Table:
    """Return how much faster speculation was at each load, and where that ends."""
    loads = sorted({load for points in gains.values() for load, _ in points})
    heads = [f"{load} in flight" for load in loads]
    table = _table("class", *heads, "gains up to")
    for kind, points in gains.items():
        at = crossover(points)
        known = dict(points)
        ratios = (_number(known.get(load), "{:.2f}x") for load in loads)
        table.add_row(kind, *ratios, _end(points) if at is None else f"{at:.1f}")
    return table


def _end(points: Gains) -> str:
    """Say what no crossover means: never a gain, or one at every load that was measured."""
    if not points:
        return _UNKNOWN
    return "none" if points[0][1] <= 1.0 else f"over {points[-1][0]}"


def load_table(steps: Sequence[Step]) -> Table:
    """Return what became of requests as the load rose and fell."""
    table = _table("in flight", "requests", SPEC, PLAIN, "shed", "why", "TPOT ms", "failed")
    for step in steps:
        shed = ", ".join(f"{times} {kind}" for kind, times in step.shed.items())
        table.add_row(
            *(str(step.in_flight), str(step.requests)),
            *(str(step.by_pool.get(pool, 0)) for pool in POOLS),
            *(shed or _UNKNOWN, ", ".join(step.reasons) or _UNKNOWN),
            *(_ms(step.tpot_s, "{:.1f}"), str(step.failed)),
        )
    return table


def outage_table(outage: Outage) -> Table:
    """Return what a killed server meant."""
    table = _table("", "")
    errors = ", ".join(f"{times} {error}" for error, times in outage.errors.items())
    table.add_row("in flight when it died", str(outage.under_way))
    table.add_row("moved to plain before a byte", str(outage.moved))
    table.add_row("cut after their first byte", f"{outage.cut}  {errors}".rstrip())
    table.add_row("lost without a byte", str(outage.lost))
    table.add_row("sent while it was down", f"{outage.on_plain} on plain, {outage.elsewhere} not")
    back = "never" if outage.back_after_s is None else f"after {outage.back_after_s:.1f} s"
    table.add_row("first answer once it was back", back)
    return table


def how_to(url: str, model: str) -> str:
    """Return how to point a client at the gateway."""
    return f"""Point a client at the gateway, {url}:

  curl {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="unused")
  answer = client.chat.completions.with_raw_response.create(
      model="{model}", temperature=0.2, messages=[{{"role": "user", "content": "Hello"}}])
  print(answer.headers["x-turnout-pool"], answer.headers["x-turnout-reason"])
"""


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(heads))
    for head in heads:
        text = head in ("class", "pool", "shed", "why", "vs. other", "")
        table.add_column(head, justify="left" if text else "right", no_wrap=head != "vs. other")
    return table


def _number(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else form.format(value)


def _ms(seconds: float | None, form: str = "{:.0f}") -> str:
    return _number(None if seconds is None else seconds * 1000, form)
