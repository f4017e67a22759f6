"""What the gates share: bounds on small tables of statistics, which Great Expectations checks. A bound that does not hold stops the flow.

No stage takes a gate's artifact as input, so a changed bound re-runs the gates alone. Suites see statistics, never texts.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from contract.errors import GateFailed
from contract.ledger import Ledger
from engine.stage import Output

Row = dict[str, Any]
TOTAL = "all"
"""The name of the row that counts all domains together."""


@dataclass(frozen=True)
class Bound:
    """The limits of a column in a table of statistics, and the setting that they come from (or the rule)."""

    table: str
    column: str
    at_least: float | None
    at_most: float | None
    setting: str
    why: str = ""
    """What most often brought the figure about; it ends the sentence of a bound that does not hold."""


def judge(tables: Mapping[str, Sequence[Row]], bounds: Sequence[Bound], out: Output) -> Ledger:
    """Check the bounds with Great Expectations, and write statistics and verdicts. Raises GateFailed for bounds that do not hold.

    validation.json is content: expectations, bounds and figures. What the library adds (times, ids) is attached.
    """
    verdicts: list[Row] = []
    for name, rows in tables.items():
        wanted = [bound for bound in bounds if bound.table == name and any(row.get(bound.column) is not None for row in rows)]
        verdicts += _validate(out, name, rows, wanted)
    why = {(bound.table, bound.column): bound.why for bound in bounds}
    failed = [_sentence(verdict, why[verdict["table"], verdict["column"]]) for verdict in verdicts if not verdict["holds"]]
    if failed:
        raise GateFailed(
            f"{out.attempt.stage} does not hold:\n" + "\n".join(failed) + "\n"
            "Look at the stage before it (`bessemer show`), and change the data, the rules or the bound; nothing was built on it."
        )
    out.json("statistics.json", tables)
    out.json("validation.json", verdicts)
    out.figures |= {"expectations": len(verdicts), "held": len(verdicts), **{name: list(rows) for name, rows in tables.items()}}
    return Ledger()


def warm_up() -> None:
    """Import Great Expectations. It takes seconds of a core, so a stage with an idle core does it before the first gate."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations  # noqa: F401


def _validate(out: Output, name: str, rows: Sequence[Row], bounds: Sequence[Bound]) -> list[Row]:
    """One verdict a bound, by a suite of Great Expectations over one table."""
    if not bounds:
        return []
    warm_up()
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)  # it logs temporary folders
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    frame = pd.DataFrame({bound.column: [row.get(bound.column) for row in rows] for bound in bounds}, dtype="float64")
    suite = gx.ExpectationSuite(name=f"{out.attempt.stage}-{name}")
    for bound in bounds:
        suite.add_expectation(ExpectColumnValuesToBeBetween(column=bound.column, min_value=bound.at_least, max_value=bound.at_most))
    asset = context.data_sources.add_pandas("statistics").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch(batch_parameters={"dataframe": frame})
    result = batch.validate(suite, result_format="COMPLETE")
    out.attach(f"great_expectations-{name}.json", orjson.dumps(result.to_json_dict(), option=orjson.OPT_INDENT_2))
    configured = [(outcome.expectation_config, outcome.success) for outcome in result.results]
    holds = {about.kwargs["column"]: (about.type, success) for about, success in configured if about is not None}
    return [
        {
            "expectation": holds[bound.column][0],
            "table": name,
            "column": bound.column,
            "at_least": bound.at_least,
            "at_most": bound.at_most,
            "setting": bound.setting,
            "holds": bool(holds[bound.column][1]),
            "figures": {str(row["domain"]): row.get(bound.column) for row in rows},
        }
        for bound in bounds
    ]


def _sentence(verdict: Row, why: str) -> str:
    low, high = verdict["at_least"], verdict["at_most"]
    broken = {
        domain: figure
        for domain, figure in verdict["figures"].items()
        if figure is not None and ((low is not None and figure < low) or (high is not None and figure > high))
    }
    found = ", ".join(f"{figure:,.10g} ({domain})" for domain, figure in broken.items())
    wanted = f"at least {low:,.10g}" if low is not None else f"at most {high:,.10g}"
    because = f"; {why}" if why else ""
    return f"  {verdict['expectation']} {verdict['column']}: found {found}, expected {wanted} ({verdict['setting']}){because}"
