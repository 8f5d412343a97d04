"""Answers as tables: values, percentiles, and the tokens that made the value."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curator.cli.printable import printable
from curator.query.results import QueryResult, ScoredSample, TokenValue

__all__ = ["before_counted", "highlighted", "shaded", "show"]

_MOST_CHARACTERS = 240
_HELP = ("", "on dark_green", "on green4", "bold white on green3")
_HURT = ("", "on dark_red", "on red3", "bold white on red1")


def show(result: QueryResult, console: Console | None = None) -> None:
    """Prints an answer: the query, the two tables, and how it was made."""
    console = console or Console(highlight=False)
    console.print(Text("query  ", style="bold").append(_query_text(result.query), style="none"))
    for title, items in (("most helpful", result.helpful), ("most harmful", result.harmful)):
        if items:
            console.print(_table(title, items))
    console.print(Text(_how_text(result), style="dim"))


def _query_text(query: dict[str, Any]) -> str:
    named = query.get("text") or query.get("saved") or query.get("expr")
    if named:
        what = named
    elif "prompt" in query:
        what = f"{query['prompt']}{query['response']}"
    else:
        what = ", ".join(query["data"])
        if "by" in query:
            what += f" {query['by']}={query['group']}"
        elif "row" in query:
            what += f" row {query['row']}"
    size = f"({query['num_samples']:,} samples, {query['num_tokens']:,} counted tokens)"
    return f"{printable(what)[:_MOST_CHARACTERS]}  {size}"


def _table(title: str, items: list[ScoredSample]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", expand=True, box=None, padding=(0, 1))
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("pct", justify="right", no_wrap=True)
    table.add_column("key", overflow="fold", max_width=20)
    if any(item.label for item in items):
        table.add_column("label", overflow="fold", max_width=20)
    table.add_column("text, shaded by its part of the value: green helps, red hurts", overflow="fold", ratio=1)
    for item in items:
        cells: list[str | Text] = [f"{item.value:.4g}", f"{item.percentile:.1f}", Text(printable(item.key))]
        if any(other.label for other in items):
            cells.append(Text(printable(item.label or "")))
        table.add_row(*cells, highlighted(item))
    return table


def highlighted(item: ScoredSample) -> Text:
    """The sample's text, each counted token shaded by its part of the value; long texts cut around the strongest."""
    tokens = item.tokens or []
    uncounted = before_counted(item.text, [token.text for token in tokens])
    strongest = max((abs(token.value) for token in tokens), default=0.0) or 1.0
    start, stop = _window(tokens)
    text = Text(printable(uncounted)[-100:] if start == 0 else "...", style="dim")
    for token in tokens[start:stop]:
        text.append(printable(token.text), style=shaded(token.value, strongest) or "not dim")
    return text.append("..." if stop < len(tokens) else "")


def shaded(value: float, strongest: float) -> str:
    """The style of a token by its share of the strongest one's part: green helps, red hurts; weak ones have none."""
    level = min(3, int(4 * abs(value) / (strongest or 1.0)))
    return (_HELP if value > 0 else _HURT)[level]


def before_counted(text: str, pieces: list[str]) -> str:
    """What stands in the text before its counted tokens: the prompt. The last token may be an end that no text has."""
    for counted in ("".join(pieces).strip(), "".join(pieces[:-1]).strip()):
        if counted and text.rstrip().endswith(counted):
            return text.rstrip()[: -len(counted)]
    return "" if pieces else text


def _window(tokens: list[TokenValue]) -> tuple[int, int]:
    """The tokens to show: all, or those around the strongest within _MOST_CHARACTERS."""
    if sum(len(token.text) for token in tokens) <= _MOST_CHARACTERS:
        return 0, len(tokens)
    start = stop = max(range(len(tokens)), key=lambda i: abs(tokens[i].value))
    length = 0
    while length < _MOST_CHARACTERS and (start > 0 or stop < len(tokens)):
        if start > 0:
            start -= 1
            length += len(tokens[start].text)
        if stop < len(tokens):
            length += len(tokens[stop].text)
            stop += 1
    return start, stop


def _how_text(result: QueryResult) -> str:
    how = result.how
    method = how.method if how.damping is None else f"{how.method} (damping {how.damping:g})"
    looked = f"{how.candidates:,} candidates rescored ({how.tier})" if how.candidates else "values of the sketch"
    looked += f", {how.rare_candidates:,} of them for rare tokens" if how.rare_candidates else ""
    filtered = "" if how.where is None else f", {how.num_eligible:,} match the filter"
    return (
        f"{method} · {how.num_samples:,} samples{filtered} · {how.index['type']} index · {looked} · "
        f"sketch sees {how.captured:.0%} of the query · percentiles among {how.percentiles} · "
        f"space {how.space[:12]} · {how.seconds:.2f} s"
    )
