"""Extract, publish, reconcile and transform: Postgres to core."""
