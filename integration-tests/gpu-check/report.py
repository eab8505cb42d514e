"""The table that a run prints, from the file of results alone."""

from goals import GOALS, RATIO, Goal
from results import Results
from rows import Row, rows

VERDICTS = {"aim": "met, and the aim", "must": "met", "no": "NOT MET", "?": "not measured"}


def text(results: Results) -> str:
    content = results.content
    if "origin" not in content:
        return "nothing was measured yet"
    units = results.units()
    found = rows(results.figures(), units)
    machine = content["machine"]
    about = f"{machine['name']}, driver {machine['driver']}, commit {content['commit']}, {content['date']}"
    lines = [
        about + (", quick" if content["is_quick"] else ""),
        "",
        *table([("figure", "", "unit", "of ceiling", "against", "goal")] + [cells(row) for row in found]),
        "",
        *table([("goal", "must", "aim", "figure", "")] + [cells for goal in GOALS for cells in verdicts(goal, found)]),
    ]
    lines += notes(units)
    if results.others():
        lines += ["", f"{results.others()} units of another machine, commit or thoroughness are not shown."]
    return "\n".join(lines)


def cells(row: Row) -> tuple[str, ...]:
    share = f"{row.share:.0%} {row.ceiling}" if row.share is not None else ""
    ratio = f"{row.ratio:.2f} x {row.peer}" if row.ratio is not None else ""
    goals = [goal for goal in GOALS if goal.rows and goal.applies_to(row.name)]
    return (row.name, number(row.value), row.unit, share, ratio, "; ".join(goal_cell(goal, row) for goal in goals))


def goal_cell(goal: Goal, row: Row) -> str:
    figure = getattr(row, goal.figure)
    bounds = " / ".join(bound(goal, limit) for limit in (goal.must, goal.aim) if limit is not None)
    return f"{bounds}: {VERDICTS[goal.verdict(figure)]}"


def verdicts(goal: Goal, found: list[Row]) -> list[tuple[str, ...]]:
    """A line for the worst of its rows: a goal for all of them is met if that is."""
    known = {row: getattr(row, goal.figure) for row in found if goal.rows and goal.applies_to(row.name)}
    known = {row: figure for row, figure in known.items() if figure is not None}
    bounds = (bound(goal, goal.must), bound(goal, goal.aim) if goal.aim is not None else "")
    if not known:
        return [(goal.title, *bounds, "", goal.unmeasured or VERDICTS["?"])]
    worst = (min if goal.is_at_least else max)(known, key=known.get)
    where = ", ".join([worst.name] * (len(known) > 1) + [worst.peer] * (goal.figure == RATIO))
    where = f" ({where})" if where else ""
    return [(goal.title, *bounds, bound(goal, known[worst]) + where, VERDICTS[goal.verdict(known[worst])])]


def bound(goal: Goal, figure: float) -> str:
    return f"{figure:.0%}" if goal.figure == "share" else f"{figure:.2f} x" if goal.figure == RATIO else number(figure)


def notes(units: dict[str, dict]) -> list[str]:
    """Units that have not ended well, and why."""
    lines = [f"{name}: {unit['state']}: {unit['why']}" for name, unit in units.items() if unit["state"] != "done"]
    return ["", *lines] if lines else []


def table(lines: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    # Figures and bounds, which come second, to the right.
    sides = ["<", ">", *("<" * len(widths))]
    aligned = ["".join(f"  {cell:{side}{width}}" for cell, side, width in zip(line, sides, widths)) for line in lines]
    rule = "".join(f"  {'-' * width}" for width in widths)
    return [line.rstrip() for line in (aligned[0], rule, *aligned[1:])]


def number(value: float) -> str:
    """Three digits, and all of large numbers."""
    if value == int(value):
        return f"{int(value)}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"
