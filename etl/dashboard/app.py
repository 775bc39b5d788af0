"""The pages and their order; `bash/dashboard.sh` lets Streamlit run this file."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from etl.dashboard import data_quality, feature_insight, model_performance, pattern_analysis, predicted_fraud, raw_data
from etl.dashboard.framed import framed

# Without icons: a browser would fetch a page's icon from Google's server.
PAGES: dict[str, tuple[str, Callable[[], None]]] = {
    "predicted_fraud": ("Predicted fraud", predicted_fraud.page),
    "pattern_analysis": ("Pattern analysis", pattern_analysis.page),
    "model_performance": ("Model performance", model_performance.page),
    "feature_insight": ("Feature insight", feature_insight.page),
    "data_quality": ("Data quality", data_quality.page),
    "raw_data": ("Raw data", raw_data.page),
}


def main() -> None:
    """Draw the page that the address names."""
    st.set_page_config(page_title="Card fraud", layout="wide", initial_sidebar_state="expanded")
    pages = [
        st.Page(framed(title, draw), title=title, url_path=path, default=path == "predicted_fraud") for path, (title, draw) in PAGES.items()
    ]
    st.navigation(pages).run()


main()
