"""The HTTP interface of the real-time lane."""
