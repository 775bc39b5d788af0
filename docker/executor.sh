#!/bin/sh
# Become a Spark executor: Spark on Kubernetes starts its image with the argument `executor` and says the rest in variables.
# Usage: executor (SPARK_DRIVER_URL, SPARK_EXECUTOR_ID, SPARK_EXECUTOR_CORES, SPARK_EXECUTOR_MEMORY, SPARK_JAVA_OPT_*, ... are set)
set -eu
home=$(python3 -c 'import importlib.util as u; print(u.find_spec("pyspark").submodule_search_locations[0])')
# Each option is one variable; its value may hold blanks.
set --
i=0
while eval "[ -n \"\${SPARK_JAVA_OPT_$i+x}\" ]"; do
  eval "set -- \"\$@\" \"\$SPARK_JAVA_OPT_$i\""
  i=$((i + 1))
done
exec "$JAVA_HOME/bin/java" "$@" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" \
  -cp "${SPARK_CLASSPATH:+$SPARK_CLASSPATH:}$home/jars/*:${SPARK_CONF_DIR:-}" \
  org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
  --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
  --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
  --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
