#!/usr/bin/env bash
# Tests of k8s/ and bash/deploy.sh on a real cluster, in a namespace of their own that ends with them. About six minutes.
# Usage: bash/test_node.sh [--check]
#   --check  only say whether what the tests need is there
#   WAREHOUSE_TEST_KUBECONFIG names the kubeconfig of a test cluster whose nodes have the images card-fraud/warehouse and card-fraud/api of
#   this version (bash/build_images.sh); WAREHOUSE_TEST_ADDRESS is this machine's address as its pods reach it: a broker is started there
# Exit codes: 0 passed, 1 failed, 2 no cluster or address is named.
source "$(dirname "$0")/lib.sh"
needed() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}
[ -f "${WAREHOUSE_TEST_KUBECONFIG:-}" ] || needed 'WAREHOUSE_TEST_KUBECONFIG names no file; it has to name the kubeconfig of a test cluster'
[ -n "${WAREHOUSE_TEST_ADDRESS:-}" ] || needed "WAREHOUSE_TEST_ADDRESS is empty; it has to be this machine's address as the cluster's pods reach it"
[ "${1:-}" != --check ] || exit 0
cd "$ROOT"
PATH=$PATH:$VENV/bin KUBECONFIG=$WAREHOUSE_TEST_KUBECONFIG "$VENV/bin/pytest" -q tests/k8s/on_node.py
