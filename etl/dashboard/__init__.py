"""The dashboard: what Power BI shows, as a local web page from the marts; it asks the readers server and nothing else."""
