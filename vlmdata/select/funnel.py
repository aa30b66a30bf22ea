"""How many pairs each step of the selection rejected and left."""

from typing import Any

from vlmdata.select.choice import CONSENT_STATUSES, ERROR_CLASSES, Choice


def funnel(counts: dict[str | None, int], choice: Choice) -> list[dict[str, Any]]:
    """The steps in the order of verdicts: `{"reason", "rejected", "left"}`, the first with reason null: all pairs.

    Rules and methods that rejected nothing stand in it too; other reasons only where they rejected something.
    """
    left = sum(counts.values())
    steps: list[dict[str, Any]] = [{"reason": None, "rejected": 0, "left": left}]
    order = ["forgotten"]
    order += [f"consent: {word}" for word in CONSENT_STATUSES] + [f"download: {word}" for word in ERROR_CLASSES]
    for name in choice.rules:
        order += [f"{name}: not measured", name]
    order += [f"duplicate: {method}" for method in choice.methods]
    asked = (("top", choice.top), ("balance", choice.balanced), ("sample", choice.sample))
    last = [step for step, wanted in asked if wanted]
    order += last
    always = {*choice.rules, *(f"duplicate: {method}" for method in choice.methods), *last}
    unknown = set(counts) - set(order) - {None}
    assert not unknown, f"reasons without a place in the funnel: {sorted(map(str, unknown))}"
    for reason in order:
        rejected = counts.get(reason, 0)
        if rejected or reason in always:
            left -= rejected
            steps.append({"reason": reason, "rejected": rejected, "left": left})
    return steps


def table(published: list[dict[str, Any]], steps: list[dict[str, Any]]) -> list[str]:
    """Lines of text: for each step what it rejects and leaves, what it rejected when published, and the difference."""
    was = {step["reason"]: step for step in published}
    gone = [{"reason": name, "rejected": 0, "left": None} for name in was if name not in {s["reason"] for s in steps}]
    lines = [("", "rejected", "left", "published", "difference")]
    for step in [*steps, *gone]:
        before = was.get(step["reason"], {"rejected": 0})["rejected"]
        left = "" if step["left"] is None else f"{step['left']:,}"
        if step["reason"] is None:
            lines.append(("all pairs", "", left, "", ""))
        else:
            difference = step["rejected"] - before
            lines.append(
                (step["reason"], f"{step['rejected']:,}", left, f"{before:,}", f"{difference:+,}" if difference else "")
            )
    now, before = steps[-1]["left"], published[-1]["left"]
    lines.append(("kept", "", f"{now:,}", f"{before:,}", f"{now - before:+,}" if now != before else ""))
    width = max(len(line[0]) for line in lines)
    return [f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells).rstrip() for name, *cells in lines]
