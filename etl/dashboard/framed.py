"""What every page has: a title, errors in one sentence, and a way to ask again."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from etl.dashboard import filters
from etl.errors import WarehouseError

FOCUS = "<style>a:focus-visible {outline: 2px solid #3b82c4 !important; outline-offset: 1px}</style>"
"""Where the keyboard is among the pages; Streamlit shows it by a shade that is hard to see."""


def framed(title: str, draw: Callable[[], None]) -> Callable[[], None]:
    """Give a page its title; an error of this project becomes one sentence on it."""

    def page() -> None:
        st.html(FOCUS)
        st.title(title, anchor=False)
        try:
            draw()
        except WarehouseError as error:
            st.error(str(error))
        filters.freshness()

    return page
