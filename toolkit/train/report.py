"""The report of a trained bundle as a page: one HTML file with its pictures inside."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from device_runtime.bundle.folder import Bundle
from device_runtime.tasks.file import Task

__all__ = ["write_report"]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;border:1px solid #ccc;text-align:right}
th{background:#f3f3f3}td:first-child,th:first-child{text-align:left}.warn{background:#fff3cd;padding:.7rem 1rem}
svg text{font:12px system-ui,sans-serif}
"""


def write_report(bundle: Bundle, task: Task, cost: Mapping[str, Any] | None = None) -> Path:
    """Write `<bundle>.report.html` beside the bundle folder, from what its manifest says; of a bundle of several tasks
    `<bundle>.<task>.report.html`.

    Args:
        cost: of an answer, as `cost_of_an_answer` measures it. It is not in the bundle, or no two trainings would end
            with the same one.
    """
    whole = bundle.manifest.purpose or {}
    several = whole.get("tasks")
    purpose = next(p for p in several if p["name"] == task.name) if several else whole
    report = purpose.get("report", {})
    test = report.get("test", {})
    parts = [f"<h1>{_text(task.name)}</h1>", f"<p>{_text(task.about)}</p>"]
    parts += [_summary(bundle, report, cost)]
    parts += ["<h2>Against simpler answers</h2>", _baselines(report)]
    for name, field in test.get("fields", {}).items():
        parts += [f"<h2>{_text(name)}</h2>", _line(field), _confusion(field["confusion"]), _rare(field["confusion"])]
    if report.get("reliability"):
        parts += ["<h2>Is it as sure as it says?</h2>", _reliability(report["reliability"])]
    page = bundle.path.with_name(bundle.path.name + (f".{task.name}" if several else "") + ".report.html")
    body = "\n".join(parts)
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(task.name)}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n",
        encoding="utf-8",
    )
    return page


def _summary(bundle: Bundle, report: Mapping[str, Any], cost: Mapping[str, Any] | None) -> str:
    test, cases = report.get("test", {}), report.get("cases", {})
    size = sum(entry.size_bytes for entry in bundle.manifest.files.values())
    rows = [
        ("typed fields right", f"{_percent(test['accuracy'])} ({_percent(test['low'])} to {_percent(test['high'])})"),
        ("well-formed answers", _percent(test["well_formed"])),
        ("`none` recognized", "–" if test["none_recognized"] is None else _percent(test["none_recognized"])),
        ("calibration error of the worst field", _figure(test["calibration_error"])),
        ("test cases", str(test["count"])),
        *_of_an_answer(cost),
        ("cases trained on", f"{cases.get('train', 0):,}"),
        ("bundle", f"{size / 1e6:.2f} MB, profile {bundle.manifest.profile}, context {bundle.manifest.context}"),
        ("training", ", ".join(f"{k} {v}" for k, v in report.get("training", {}).items() if v is not None)),
    ]
    note = "<p>The test cases come from the task's own examples and generator; training has not seen them.</p>"
    return note + _table(["", ""], rows)


def _of_an_answer(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What an answer took on this machine; energy where it says it, or its board file does."""
    if not found:
        return []
    energy = "no meter, and no figure of its board" if "j" not in found else f"{found['mwh']:g} mWh ({found['how']})"
    return [
        ("an answer on the machine that trained", f"{found['ms']:.1f} ms"),
        ("its energy there", energy),
    ]


def _baselines(report: Mapping[str, Any]) -> str:
    test, baselines = report.get("test", {}), report.get("baselines", {})
    names = list(test.get("fields", {}))
    rows = [["this bundle", *(_percent(test["fields"][name]["accuracy"]) for name in names)]]
    rows += [[label, *(_percent(scores.get(name)) for name in names)] for label, scores in baselines.items()]
    better = [
        name
        for name in names
        if (tree := baselines.get("decision tree", {}).get(name)) is not None
        and test["fields"][name]["count"]
        and tree > test["fields"][name]["accuracy"] + 1e-9
    ]
    note = ""
    if better:
        note = (
            f'<p class="warn">A decision tree on the numbers does better at {_text(", ".join(better))}. '
            "A rule is better than a model there: write the rule down, in code or as `when:` of a link.</p>"
        )
    if not any("untrained" in label for label in baselines):
        note += "<p>No general model was asked the same: name one with <code>stonechat train --baseline</code>.</p>"
    return _table(["", *names], rows) + note


def _line(field: Mapping[str, Any]) -> str:
    if not field["count"]:
        return "<p>Of no test case it is known what is right here.</p>"
    share = f"{field['right']} of {field['count']} right: {_percent(field['accuracy'])}"
    return (
        f"<p>{share}, 95 % interval {_percent(field['low'])} to {_percent(field['high'])}; expected calibration "
        f"error {_figure(field['calibration_error'])}.</p>"
    )


def _confusion(confusion: Mapping[str, Mapping[str, int]]) -> str:
    labels = sorted({*confusion, *(answered for row in confusion.values() for answered in row)})
    if len(labels) > 20:
        return ""
    out = ["<table><tr><th>true ↓ answered →</th>", *(f"<th>{_text(label)}</th>" for label in labels), "</tr>"]
    for truth in labels:
        row = confusion.get(truth, {})
        total = sum(row.values()) or 1
        out.append(f"<tr><th>{_text(truth)}</th>")
        for answered in labels:
            count = row.get(answered, 0)
            colour = "60,160,80" if answered == truth else "200,60,60"
            out.append(f'<td style="background:rgba({colour},{count / total:.2f})">{count or ""}</td>')
        out.append("</tr>")
    return "".join([*out, "</table>"])


def _rare(confusion: Mapping[str, Mapping[str, int]]) -> str:
    total = sum(sum(row.values()) for row in confusion.values())
    rare = {truth: row for truth, row in confusion.items() if 0 < sum(row.values()) < total / (2 * len(confusion))}
    if not rare or len(confusion) > 20:
        return ""
    shares = ", ".join(f"{t}: {row.get(t, 0)} of {sum(row.values())}" for t, row in rare.items())
    return f"<p>Rare values on their own: {_text(shares)}.</p>"


def _reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """A reliability diagram: how often answers of each confidence are right."""
    side = 280
    marks = [f'<line x1="0" y1="{side}" x2="{side}" y2="0" stroke="#bbb"/>']
    largest = max(b["count"] for b in bins)
    for b in bins:
        x, y = b["confidence"] * side, side - b["right"] * side
        radius = 3 + 9 * (b["count"] / largest) ** 0.5
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#27c" opacity=".7"/>')
    axes = f'<rect width="{side}" height="{side}" fill="none" stroke="#888"/>'
    labels = f'<text x="{side / 2 - 40}" y="{side + 18}">confidence</text><text x="4" y="14">share that is right</text>'
    return (
        f'<svg width="{side + 20}" height="{side + 30}" viewBox="-10 -5 {side + 20} {side + 30}">'
        f"{axes}{''.join(marks)}{labels}</svg>"
        "<p>On the line a confidence is what it says; larger dots are more answers.</p>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    out = ["<table>"]
    if any(head):
        out.append("<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>")
    out += ["<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "".join([*out, "</table>"])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _figure(error: float | None) -> str:
    return "–" if error is None else f"{error:.3f}"


def _text(value: object) -> str:
    return html.escape(str(value))
