"""The local stack: real Postgres, HDFS, Hive Metastore and SQL servers on loopback, supervised."""
