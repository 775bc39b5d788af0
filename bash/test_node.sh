#!/usr/bin/env bash
# Tests of k8s/ and bash/deploy.sh on a real cluster, in a namespace of their own that ends with them. About six minutes.
# Usage: bash/test_node.sh
#   WAREHOUSE_TEST_KUBECONFIG names the kubeconfig of a test cluster whose nodes have the images card-fraud/warehouse and card-fraud/api of
#   this version (bash/build_images.sh)
# Exit codes: 0 passed, 1 failed, 2 no cluster is named.
source "$(dirname "$0")/lib.sh"
[ -f "${WAREHOUSE_TEST_KUBECONFIG:-}" ] || {
  printf 'error: WAREHOUSE_TEST_KUBECONFIG names no file; it has to name the kubeconfig of a test cluster\n' >&2
  exit 2
}
cd "$ROOT"
PATH=$PATH:$VENV/bin KUBECONFIG=$WAREHOUSE_TEST_KUBECONFIG "$VENV/bin/pytest" -q tests/k8s/on_node.py
