#!/usr/bin/env bash
# Run a module on Spark: on the warm loads server, or by spark-submit on this machine, YARN or Kubernetes.
# Usage: bash/submit.sh MODULE [ARGUMENT...]
#   The setting WAREHOUSE_SPARK_MASTER says where: connect (the default), local[*], yarn or k8s://...
source "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || {
  usage >&2
  exit 2
}
py ml.spark "$@"
