"""The generated pages of docs/."""

import pytest

from docs.generate import DOCS, PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_is_up_to_date(page):
    assert (DOCS / page).read_text() == PAGES[page](), "run make docs"
