#!/usr/bin/env bash
# Build the images with docker, podman or buildah, whichever works here, and print their sizes.
# Usage: bash/build_images.sh [--tag TAG] [--push REGISTRY] [--model-version N] [IMAGE...]
#   --tag   by default the version in pyproject.toml
#   --push  also push them, as REGISTRY/<image>
#   --model-version  what the image model holds; by default the champion
#   IMAGE   warehouse sql-server hadoop metastore kafka api jenkins (all of these by default), or
#           model: fraud-score:<version>, the model baked in (needs the warehouse image and the servers)
# CONTAINER_TOOL names the tool, CONTAINER_BUILD_OPTIONS adds options to each build.
# Exit codes: 0 built, 2 wrong usage, 3 refused, 1 anything else.
source "$(dirname "$0")/lib.sh"

tag=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/pyproject.toml")
registry='' model_version=()
while [[ "${1:-}" = --* ]]; do
  case $1 in
  --tag) tag=${2:?--tag needs a value} ;;
  --push) registry=${2:?--push needs a registry} ;;
  --model-version) model_version=(--model-version "${2:?--model-version needs a number}") ;;
  *) usage >&2 && exit 2 ;;
  esac
  shift 2
done
tool=${CONTAINER_TOOL:-}
for one in docker podman buildah; do
  [ -n "$tool" ] || ! "$one" info >/dev/null 2>&1 || tool=$one
done
[ -n "$tool" ] || die "none of docker, podman, buildah works here; install one, or start Docker"
read -ra options <<<"${CONTAINER_BUILD_OPTIONS:-}"
# Docker's image format: health checks are part of it.
[ "$tool" = docker ] || options+=(--format docker --layers)
commit=$(git -C "$ROOT" describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)

# build NAME:TAG CONTEXT [OPTION...]
build() {
  local name=$1 context=$2
  shift 2
  log "$name: building with $tool"
  "$tool" build "${options[@]}" --build-arg "VERSION=${name##*:}" --build-arg "COMMIT=$commit" -t "$name" "$@" "$context" >&2
  bytes=$("$tool" inspect --format '{{.Size}}' --type image "$name" 2>/dev/null || "$tool" images --format '{{.Size}}' "$name")
  printf '%s\t%s\n' "$name" "$bytes"
  if [ -n "$registry" ]; then
    "$tool" tag "$name" "$registry/$name"
    "$tool" push "$registry/$name" >&2
  fi
}

[ $# -gt 0 ] || set -- warehouse sql-server hadoop metastore kafka api jenkins
for image in "$@"; do
  case $image in
  warehouse | sql-server | hadoop | metastore | kafka | api)
    build "card-fraud/$image:$tag" "$ROOT" -f "$ROOT/docker/Dockerfile" --target "$image"
    ;;
  jenkins) build "card-fraud/jenkins:$tag" "$ROOT" -f "$ROOT/docker/jenkins/Dockerfile" ;;
  model)
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    version=$(py ml.export "$folder/model" "${model_version[@]}")
    build "fraud-score:$version" "$folder/model" -f "$ROOT/docker/model/Dockerfile" --build-arg "WAREHOUSE=${registry:+$registry/}card-fraud/warehouse:$tag"
    ;;
  *)
    usage >&2
    exit 2
    ;;
  esac
done
