"""Test docs/mapping.md: its Python code, the defaults of the filter, and the packages of the system."""

from __future__ import annotations

import re
from dataclasses import asdict

from m2h_deploy.mapping.open3d import SYSTEM_PACKAGES
from m2h_deploy.temporal import FilterSettings
from tests.pages import Page

PAGE = Page("mapping.md")


def test_the_table_has_every_setting_of_the_filter_with_its_default():
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", PAGE.text[PAGE.text.index("| setting |") :], re.MULTILINE)
    stated = {
        name.strip("`"): value
        for names, values in rows
        for name, value in zip(names.split(", "), values.split(", "), strict=True)
    }
    assert stated == {name: "none" if value == () else f"{value:g}" for name, value in asdict(FilterSettings()).items()}


def test_the_python_code_filters_a_sequence(nyu_bundle, room):
    (block,) = PAGE.blocks("python")
    names: dict = {}
    exec(block.replace("bundle/", str(nyu_bundle)).replace("sequence/", str(room)), names)
    assert names["temporal"].support > 0
    assert names["prediction"].timings["filter"] > 0
    assert names["stream"].health.delivered == len(names["sequence"])
    names["runtime"].close()


def test_pages_and_the_error_name_the_same_packages_of_the_system():
    for page in (PAGE, Page("install.md")):
        found = re.search(r"apt-get install (?:--\S+ )?([^`]*)", page.text)
        assert found is not None
        assert found[1].split() == list(SYSTEM_PACKAGES)
