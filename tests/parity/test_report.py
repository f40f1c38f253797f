"""Test that terminal, page and JUnit file show the same result."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError
from m2h_deploy.parity import Gates, locate_in_bundle, to_json, verify
from m2h_deploy.parity.report import TASK_COLUMNS, print_result, write_html, write_junit


@pytest.fixture(scope="module")
def result(tiny_bundle, tiny_onnx):
    return verify(tiny_bundle, tiny_onnx, Rooms(2, height=48, width=64), pictures=1)


@pytest.fixture(scope="module")
def failing(result):
    gates = tuple(
        dataclasses.replace(gate, verdict="fail", message="depth is <bad> & wrong")
        if gate.name == "depth.psnr"
        else gate
        for gate in result.gates
    )
    return dataclasses.replace(result, gates=gates)


def printed(result) -> str:
    stream = io.StringIO()
    print_result(result, Console(file=stream, width=160))
    return stream.getvalue()


def test_the_terminal_shows_every_task_and_the_verdict_last(result, failing):
    text = printed(result)
    for word in ("RMSE, m", "mIoU, %", "mErr, °", "odsF, %", "PSNR", "logit", "worse by", "2 of 2 frames"):
        assert word in text
    verdict = text.strip().splitlines()[-1]
    assert verdict.startswith("TOO FEW FRAMES TO TELL: 9 of 10")
    assert verdict.endswith("about 8 frames are likely to be enough (the data has 2)")
    assert printed(failing).strip().splitlines()[-1].startswith("FAILED: 8 of 10")


def test_derived_labels_are_marked(result):
    tasks = tuple(dataclasses.replace(task, derived=task.task == "normals") for task in result.tasks)
    assert "not comparable with the paper's Table I" in printed(dataclasses.replace(result, tasks=tasks))
    assert "Table I" not in printed(result)


def test_without_labels_only_the_agreement_with_the_reference_is_shown(result, tmp_path):
    tasks = tuple(
        dataclasses.replace(task, against="reference", reference=None, engine=99.5) if task.task == "edges" else task
        for task in result.tasks
    )
    changed = dataclasses.replace(result, tasks=tasks)
    (row,) = (line.split() for line in printed(changed).splitlines() if "odsF, %" in line)
    assert row[:6] == ["edges", "odsF,", "%", "reference", "-", "99.50"]
    assert "edges: no labels in the data" in printed(changed)
    page = write_html(changed, tmp_path / "page.html").read_text()
    edges = page[page.index(">edges<") :]
    assert re.findall(r'<td data-name="([^"]*)"[^>]*><span>([^<]*)', edges)[:4] == [
        ("metric", "odsF, %"),
        ("truth", "reference"),
        ("reference", "-"),
        ("engine", "99.50"),
    ]
    assert "not an accuracy" in page


def test_the_terminal_and_the_page_have_the_same_columns(result, tmp_path):
    page = write_html(result, tmp_path / "page.html").read_text()
    for column in TASK_COLUMNS:
        assert f">{column}</th>" in page
        assert column in printed(result)


def test_junit_has_a_case_for_each_gate(result, failing, tmp_path):
    suite = ElementTree.parse(write_junit(failing, tmp_path / "junit.xml")).getroot().find("testsuite")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [gate.name for gate in result.gates]
    assert (suite.get("tests"), suite.get("failures")) == ("10", "2")  # too few frames is a failure too
    failures = {case.get("name"): case.find("failure") for case in cases if case.find("failure") is not None}
    assert failures["depth.psnr"].get("message") == "depth is <bad> & wrong"
    assert {element.tag for case in cases for element in case} <= {"failure", "system-out"}


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]


def test_the_page_needs_no_other_file_and_shows_the_worst_frames(failing, tmp_path):
    page = write_html(failing, tmp_path / "parity.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.sources) == 4 * 4
    assert all(re.match(r"data:image/jpeg;base64,[\w+/=]+$", source) for source in links.sources)
    assert "script" not in links.tags
    assert "url(" not in page
    assert "Failed" in page
    assert "depth is &lt;bad&gt; &amp; wrong" in page


def test_a_page_without_gates_and_pictures_is_complete(result, tmp_path):
    bare = dataclasses.replace(result, gates=(), worst=(), limits=Gates(None, None, None, None, None))
    assert write_html(bare, tmp_path / "bare.html").read_text().rstrip().endswith("</html>")


def test_an_unwritable_path_gives_a_one_line_error(result, tmp_path):
    with pytest.raises(M2HError, match="cannot write"):
        write_junit(result, tmp_path / "absent" / "junit.xml")


def test_the_first_diverging_block_is_on_the_page_and_in_the_json(result, tiny_bundle, tiny_onnx, tmp_path):
    located = locate_in_bundle(load_bundle(tiny_bundle), tiny_onnx)
    page = write_html(dataclasses.replace(result, located=located), tmp_path / "located.html").read_text()
    assert f"{located.compared} of {located.of} intermediate values" in page
    assert "data:image/png;base64," in page
    content = json.loads(json.dumps(to_json(dataclasses.replace(result, located=located)), allow_nan=False))["located"]
    assert content["block"] is None
    assert "heads.depth" in {block["name"] for block in content["blocks"]}
