"""The summary of a run: its last lines at a terminal and in its log, and the same with more figures as Markdown for the UI."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bessemer.checks import Check, checks, plural
from engine.stage_lines import duration, size
from evaluation.charts import escape
from evaluation.claims import claims_nothing
from services.report_server import served
from store.artifact import Artifact

SCORED = ("base", "bigram", "kenlm", "gzip")


@dataclass(frozen=True)
class Summary:
    results: Mapping[str, Artifact | None]
    seconds: float
    used: Sequence[Artifact] = ()
    """Every artifact that the run made or reused: the gates are not among its results."""

    def lines(self) -> list[str]:
        """The results, which claims hold, and where the files are."""
        lines = [f"{len(self._made)} stage{plural(len(self._made))}, {size(sum(a.size for a in self._made))}, {duration(self.seconds)}"]
        if evaluation := self.results.get("evaluation"):
            bits = [(name, evaluation.figures.get(f"{name}_bits_per_byte")) for name in SCORED]
            lines.append("scores  bits per byte: " + ", ".join(f"{name} {value:.3f}" for name, value in bits if value is not None))
            if not self.claims_nothing:
                lines.append(f"claims  {self.held.replace('claims ', '')}")
                lines += [f"not     {claim['claim']}: {claim['found']}" for claim in self.claims if not claim["holds"]]
        if export := self.results.get("export"):
            lines.append(f"export  {_place(export, 'export/config.json').removesuffix('/config.json')}")
        if report := self.results.get("report"):
            lines.append(f"report  {_place(report, 'report.html')}")
        if self.link:
            lines.append(f"open    {self.link}")
        if self.claims_nothing and self.claims:
            lines.append(f"checks  {self._checked}: {', '.join(map(str, self._checks))}")
            lines.append(f"claims  none: {self.claims_nothing}")
        return lines

    @cached_property
    def claims(self) -> list[dict[str, Any]]:
        """The report's claims, which include the export's; without a report, the evaluation's."""
        if report := self.results.get("report"):
            claims = report.json("figures.json").get("claims", [])
        else:
            evaluation = self.results.get("evaluation")
            claims = evaluation.json("evaluation.json").get("claims", []) if evaluation else []
        return [claim | {"claim": claim["claim"].replace("_", " ")} for claim in claims]

    @cached_property
    def claims_nothing(self) -> str | None:
        """Why this run's model makes no claims, or None: then its claims are listed, held or not."""
        base = self.results.get("base")
        return claims_nothing(base.manifest["identity"]["config"], base.figures) if base else None

    @cached_property
    def _checks(self) -> list[Check]:
        return checks(self.used or self._made)

    @property
    def _checked(self) -> str:
        held, made = (sum(getattr(check, name) for check in self._checks) for name in ("held", "made"))
        return f"{held:,} of the machinery hold" if held == made else f"{held:,} of {made:,} of the machinery hold"

    @property
    def title(self) -> str:
        """The run's outcome in a few words; empty for a run without an evaluation."""
        if not self.claims:
            return ""
        return f"checks {self._checked}; {self.claims_nothing}" if self.claims_nothing else self.held

    @property
    def held(self) -> str:
        return f"{sum(claim['holds'] for claim in self.claims)} of {len(self.claims)} claims hold"

    @cached_property
    def link(self) -> str | None:
        """Where a browser on this machine opens the report; None for a store elsewhere, or where no server runs."""
        report = self.results.get("report")
        if report is None:
            return None
        local = report.storage.local(report.record("report.html").path)
        return served(Path(local), report.fingerprint) if local is not None else None

    @property
    def _made(self) -> list[Artifact]:
        return [artifact for artifact in self.results.values() if artifact is not None]

    def markdown(self) -> str:
        parts = [f"{len(self._made)} stage{plural(len(self._made))}, {size(sum(a.size for a in self._made))}, {duration(self.seconds)}"]
        if report := self.results.get("report"):
            parts.append(f"**[Open the report]({self.link})**" if self.link else f"Report: `{_place(report, 'report.html')}`")
        if export := self.results.get("export"):
            parts.append(f"Export: `{_place(export, 'export/config.json').removesuffix('/config.json')}`")
        if figures := list(self._figures()):
            parts += ["## Figures", _table(("figure", "value", "from"), figures)]
        if self.claims and self.claims_nothing:
            parts += [f"## Checks: {self._checked}", "\n".join(f"- {check}" for check in self._checks)]
            parts += [
                "## Claims: none",
                f"{self.claims_nothing[0].upper()}{self.claims_nothing[1:]}. The report lists what a whole run is held to.",
            ]
        elif self.claims:
            rows = [("holds" if c["holds"] else "**does not hold**", _text(c["claim"]), _text(c["found"])) for c in self.claims]
            parts += [f"## {self.held}", _table(("", "claim", "found"), rows)]
        stages = [(a.stage, f"`{a.fingerprint[:12]}`", *_in_and_out(a), duration(a.seconds), size(a.size)) for a in self._made]
        parts += ["## Stages", _table(("stage", "fingerprint", "documents in", "out", "time", "size"), stages)]
        return "\n\n".join(parts)

    def _figures(self) -> Iterator[tuple[str, str, str]]:
        """The few figures that tell whether the run went well."""
        for role, key, title in (("blocks", "got", "training tokens"), ("base", "parameters", "parameters")):
            if artifact := self.results.get(role):
                yield title, f"{artifact.figures[key]:,}", f"`{artifact.where()}`"
        if evaluation := self.results.get("evaluation"):
            where, found = f"`{evaluation.where()}`", evaluation.figures
            for key, value in found.items():
                if isinstance(value, float):
                    yield _text(key.replace("_", " ")), f"{value:.4g}", where


def _in_and_out(artifact: Artifact) -> tuple[str, str]:
    count = artifact.ledger.documents
    return (f"{count.came_in:,}", f"{count.out:,}") if count else ("", "")


def _place(artifact: Artifact, name: str) -> str:
    record = artifact.record(name)
    local = artifact.storage.local(record.path)
    return str(local) if local is not None else f"{artifact.storage.uri}/{record.path}"


def _text(value: str) -> str:
    """Escape a name, which may come from a user's data: it must not hold markup or end a cell."""
    return escape(value).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)
