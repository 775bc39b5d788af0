"""What every page has: a title, errors in one sentence, and a way to ask again."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from etl.dashboard import filters
from etl.errors import WarehouseError


def framed(title: str, draw: Callable[[], None]) -> Callable[[], None]:
    """Give a page its title; an error of this project becomes one sentence on it."""

    def page() -> None:
        st.title(title, anchor=False)
        try:
            draw()
        except WarehouseError as error:
            st.error(str(error))
        filters.freshness()

    return page
