"""The generated parts of the pages equal what the measurements say."""

from __future__ import annotations

import re

import pytest

from tools import readme


@pytest.mark.parametrize("page", readme.RENDERERS, ids=lambda p: p.parent.name)
def test_pages_are_in_step_with_the_measurements(page):
    assert readme.renew(page) == page.read_text(encoding="utf-8")


def test_a_changed_figure_would_be_found(tmp_path, monkeypatch):
    text = readme.README.read_text(encoding="utf-8")
    changed = re.sub(r"(\d+)/500", "499/500", text, count=1)
    assert changed != text
    page = tmp_path / "README.md"
    page.write_text(changed, encoding="utf-8")
    parts = readme.RENDERERS[readme.README]
    monkeypatch.setitem(readme.RENDERERS, page, parts)
    assert readme.renew(page) == text


def test_a_page_without_its_marks_is_refused(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("no marks", encoding="utf-8")
    monkeypatch.setitem(readme.RENDERERS, page, {"tiers": readme.render_tiers})
    with pytest.raises(ValueError, match="0 parts"):
        readme.renew(page)
