"""What a pod of the `warehouse` image runs as an executor, from the variables that Spark on Kubernetes gives it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from etl.settings import ROOT
from etl.stack.jars import PYSPARK_JARS

GIVEN = {
    "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@10.1.2.3:4040",
    "SPARK_EXECUTOR_ID": "7",
    "SPARK_EXECUTOR_CORES": "2",
    "SPARK_EXECUTOR_MEMORY": "1024m",
    "SPARK_APPLICATION_ID": "spark-1",
    "SPARK_EXECUTOR_POD_IP": "10.1.2.4",
    "SPARK_EXECUTOR_POD_NAME": "score-exec-7",
    "SPARK_RESOURCE_PROFILE_ID": "0",
    "SPARK_CONF_DIR": "/opt/spark/conf",
    # As Spark names what `spark.executor.extraClassPath` says.
    "SPARK_CLASSPATH": "/opt/jars/spark/iceberg.jar",
    "SPARK_JAVA_OPT_0": "-Dspark.app.name=two words",
    "SPARK_JAVA_OPT_1": "--add-opens=java.base/java.nio=ALL-UNNAMED",
}


def test_an_executor_has_the_options_the_jars_and_the_addresses_that_spark_gives_it(tmp_path: Path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    java.chmod(0o755)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["sh", ROOT / "docker" / "executor.sh"],
        env={**GIVEN, "JAVA_HOME": str(tmp_path), "PATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.splitlines() == [
        "-Dspark.app.name=two words", "--add-opens=java.base/java.nio=ALL-UNNAMED", "-Xms1024m", "-Xmx1024m",
        "-cp", f"/opt/jars/spark/iceberg.jar:{PYSPARK_JARS}/*:/opt/spark/conf",
        "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend",
        "--driver-url", "spark://CoarseGrainedScheduler@10.1.2.3:4040", "--executor-id", "7", "--cores", "2", "--app-id", "spark-1",
        "--hostname", "10.1.2.4", "--resourceProfileId", "0", "--podName", "score-exec-7",
    ]  # fmt: skip
