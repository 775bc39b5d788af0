#!/usr/bin/env bash
# Run a module on Spark: on the warm loads server, or by spark-submit on this machine, YARN or Kubernetes.
# Usage: bash/submit.sh MODULE [ARGUMENT...]
#   The setting WAREHOUSE_SPARK_MASTER says where: connect (the default), local[*], yarn or k8s://...
# Exit codes: the module's; 2 wrong usage, 3 refused (the setting), 6 Spark does not answer.
source "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || {
  usage >&2
  exit 2
}
py ml.spark "$@"
