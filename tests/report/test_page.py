"""Pages: one file that needs nothing else, in which a model's names are text and nothing more."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune import evaluate, inspect, preview
from onnxprune.cli import main
from onnxprune.report import page
from onnxprune.report.document import to_json
from onnxprune.report.groups import error_alone, if_cut, sensitivity, width
from onnxprune.report.lanes import drawn, lanes_of
from onnxprune.report.network import network
from tests import digits
from tests.digits import pruned
from tests.report import documents

VENDORED = Path(page.__file__).parent / "vendored"


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def test_foreign_files_are_the_recorded_ones():
    """Fails where a vendored file was changed, or one stands there without its line."""
    text = (VENDORED / "README.md").read_text(encoding="utf-8")
    recorded = dict(re.findall(r"^\| `([\w.]+)` .* ([0-9a-f]{64}) \|$", text, flags=re.MULTILINE))
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in VENDORED.glob("*.js")}
    assert recorded == found
    assert len(found) == 2
    for path in VENDORED.glob("*.js"):
        assert not re.search(r"</script|<!--", path.read_text(encoding="utf-8"), flags=re.IGNORECASE)


@pytest.mark.parametrize("make", [documents.older, documents.done, documents.swept])
def test_a_page_needs_nothing_else(make: Any):
    """Fails where an element would load something, or a script is not one that the page's policy lets run."""
    elements = Elements(page.html(make()))
    loads = [a for a in elements.attributes if a[1] in ("src", "href", "srcset", "data", "action", "poster")]
    pictures = make()["calibration"].get("pictures", "")
    assert {v for _, _, v in loads} == {"data:,", "#main", *filter(None, [pictures])}
    (policy,) = (v for tag, k, v in elements.attributes if tag == "meta" and v.startswith("default-src 'none'"))
    for script in elements.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not re.search(r"@import|url\(", page.html(make()).partition("<style>")[2].partition("</style>")[0])
    assert elements.tags["script"] == (4 if "curves" in make() else 2)


@pytest.mark.parametrize("make", [documents.done, documents.swept])
def test_hostile_names_stay_text(make: Any):
    """Fails where a name makes an element, an attribute, or ends the data of a script."""
    tame, wild = (Elements(page.html(d)) for d in (make(), documents.evil(make())))
    assert set(wild.tags) - {"td"} <= set(tame.tags) | {"ul", "li", "p", "pre"}
    assert wild.tags["img"] == 0
    assert wild.tags["script"] == tame.tags["script"]
    assert {k for _, k, _ in wild.attributes} <= {k for _, k, _ in tame.attributes}
    assert "<img src=x onerror=alert(1)>" in wild.text
    island = json.loads(wild.scripts[0])
    assert [c["name"] for c in island["curves"]] == [documents.HOSTILE] * len(island["curves"])


def test_a_page_of_a_large_network_is_small():
    """Fails where a network of 400 layers with curves takes more than a megabyte and a half, or shows every chart."""
    text = page.html(documents.large(400))
    assert len(text.encode()) < 1_500_000
    assert [text.count(x) for x in ("data-curve=", "<summary>376 more groups</summary>")] == [400, 1]


def test_what_a_row_says():
    """Fails where hovering over a layer does not tell what it saves, how sensitive it is and why it stays."""
    drawing = network(documents.charted())
    assert drawing is not None
    facts = [dict(row["facts"]) for row in drawing["rows"]]
    cut = next(f for f in facts if f.get("channels out") == "16 → 8")
    assert cut["MACs saved"] == "4608 of 9216 (50%)"
    assert cut["sensitivity"] == "cut alone from 16 to 8, the outputs' error is 7.50%"
    assert facts[-2]["stays because"] == "the graph output 'logits' keeps its shape"
    plain = network(documents.older())
    assert plain is not None
    told = [dict(row["facts"]).get("sensitivity") for row in plain["rows"]]
    assert set(told) == {None, "not measured"}


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://example.org/a.png",
        "data:text/html;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        'data:image/png;base64,A"B',
    ],
)
def test_a_picture_is_one_or_is_not_shown(address: str):
    """Fails where what a page embeds is fetched from elsewhere, or is anything but a picture."""
    document = documents.done()
    assert Elements(page.html(document)).tags["img"] == 1
    document["calibration"]["pictures"] = address
    assert Elements(page.html(document)).tags["img"] == 0


HEADS = {"units": [8, 5], "head": 64, "shared": False, "channels_before": 1536, "channels_after": 960}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"units": [512, 320], "channels_before": 512, "channels_after": 320}, "512 → 320"),
        (HEADS, "8 → 5 heads (of 64)"),
        (HEADS | {"shared": True}, "8 → 5 key/value heads (of 64)"),
        (HEADS | {"units": [8, 8], "channels_after": 1536}, "8 heads (of 64)"),
    ],
)
def test_the_width_of_a_group(changes: dict[str, Any], text: str):
    """Fails where heads of attention are shown as channels."""
    group = documents.done()["groups"][0] | changes
    assert width(group) == text


def test_what_a_cut_does_by_itself():
    """Fails where a group's row or its chart says another error than its curve, or takes an estimate for a trial."""
    document = documents.done()
    group = document["groups"][0] | HEADS
    curve = {"group": 0, "method": "obs", "channels": [768, 960, 1536], "errors": [0.3, 0.1, 0.0], "tried": [768]}
    assert error_alone(curve, group) == "~10.00%"
    assert sensitivity(curve, group) == "cut alone from 8 to 5 heads, the outputs' error is, estimated, 10.00%"
    assert error_alone(curve | {"tried": [960]}, group) == "10.00%"
    assert if_cut(curve, group | {"channels_after": 1536, "units": [8, 8]}) == "30.00% at 4"
    island = Elements(page.html(document | {"groups": [group], "curves": [curve], "layers": []})).scripts[0]
    (chart,) = json.loads(island)["curves"]
    assert (chart["counts"], chart["after"], chart["points"]) == ("heads", 5, [[4, 0.3, 1], [5, 0.1, 0], [8, 0.0, 0]])


def test_the_time_that_a_group_saves():
    """Fails where a budget of latency shows no time for each group, or another budget shows an empty column."""
    document = documents.done()
    assert "time saved" not in page.html(document)
    timing = {
        "before_seconds": 0.002,
        "after_seconds": 0.001,
        "measured": 0.5,
        "saved": [0.125] * len(document["groups"]),
    }
    shown = Elements(page.html(document | {"timing": timing}))
    assert "time saved" in shown.text
    assert shown.text.count("12.5%") == sum(g["channels_after"] < g["channels_before"] for g in document["groups"])


@given(st.lists(st.sets(st.integers(1, 12), max_size=4), max_size=30))
def test_no_two_rows_that_are_still_read_share_a_lane(steps: list[set[int]]):
    """Fails where a line of the drawing runs through a row that has nothing to do with it."""
    sources = [sorted(i - s for s in own if i >= s) for i, own in enumerate(steps)]
    lanes = lanes_of(sources)
    last = {s: i for i, own in enumerate(sources) for s in own}
    for row, lane in enumerate(lanes):
        passing = [s for s in range(row) if last.get(s, s) > row and lanes[s] == lane]
        assert passing == []
    assert len(drawn(sources).paths) == sum(map(len, sources))


def test_a_chain_is_one_line():
    assert lanes_of([[], [0], [1], [2]]) == (0, 0, 0, 0)
    assert max(lanes_of([[], [0], [1], [2, 0], [3]])) == 1


def test_pages_can_be_made_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a page made of the JSON differs, or a broken file ends in anything but one line."""
    source, made, broken = tmp_path / "r.json", tmp_path / "r.html", tmp_path / "broken.json"
    document = documents.charted()
    source.write_text(to_json(document), encoding="utf-8")
    assert main(["report", str(source), str(made), str(tmp_path / "r.md")]) == 0
    assert made.read_text(encoding="utf-8") == page.html(document)
    assert main(["report", str(source), str(made)]) == 2
    assert main(["report", str(source)]) == 2
    for wrong in ({"before": 1}, {"layers": [{"sources": [7]}]}, {"groups": {"a": 1}}, {"pinned": [1]}):
        broken.write_text(json.dumps(document | wrong), encoding="utf-8")
        assert main(["report", str(broken), str(tmp_path / "new.html")]) == 1
        assert "is not by the schema" in capsys.readouterr().err
    assert not (tmp_path / "new.html").exists()


def test_what_a_notebook_shows_of_all_else():
    """Fails where the result of a function fills screens with its fields."""
    model, data = digits.path("resnet"), digits.TEST
    shown = {
        "42,688 of 42,698 parameters": inspect(model),
        "input float32[500, 1, 8, 8] mean near 0": preview(model, data),
        "top-1 99.20%, the original's 99.20%": evaluate(model, data, against=model, labels="label"),
    }
    for part, found in shown.items():
        assert part in repr(found)
        assert len(repr(found)) < 300 + len(str(model))


def test_a_result_shows_itself_in_a_notebook():
    """Fails where `repr` fills a screen, or what a notebook shows is no table, or has scripts."""
    result = pruned("resnet", **documents.QUICK)
    assert len(repr(result.report)) < 300
    assert repr(result) == f"PruneResult(report={result.report!r})"
    assert "MACs per sample 1.12 M → " in repr(result)
    shown = Elements(result._repr_html_())
    assert shown.tags["table"] >= 2
    assert shown.tags["script"] == shown.tags["style"] == 0
    assert "MACs per sample" in shown.text
