#!/usr/bin/env bash
# Run a verb as a stage of a Jenkins pipeline: the build's parameters become its arguments, what it says is kept.
# Usage: bash/pipeline.sh VERB [ARGUMENT...]
#        bash/pipeline.sh failure
#   VERB      bash/VERB.sh; a word in capitals among its arguments is a parameter of the build, read from the environment:
#             TABLES, MODELS, OVERLAY, REGISTRY (names), AS_OF (time), MODEL_VERSION, BATCH, MAX_LAG (numbers), FORCE, SCORE, DEPLOY,
#             REPLAY (true or false). One that is empty adds nothing; without BATCH, SCORE, DEPLOY or REPLAY, a stage that names it
#             is left out.
#   failure   say in which stage the build failed or was stopped, and that stage's own sentence
# DRY_RUN=true runs what only reads (status, extract watermark show, stream lag) and tells what else would run.
# Writes reports/STAGE.log, and reports/failure.txt until the stage has ended well; a new build empties reports/ first.
# Exit codes: the verb's; 2 a parameter is wrong and nothing was run.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

# A parameter must match as a whole: it reaches a verb as values, never as an option, and no shell reads it again.
names='[a-z][a-z0-9_]*( [a-z][a-z0-9_]*)*' number='[0-9]{1,18}' either='true|false'
declare -A patterns=([TABLES]=$names [MODELS]=$names [OVERLAY]='[a-z][a-z0-9-]*' [REGISTRY]='[a-z0-9][a-z0-9.:/_-]*'
  [AS_OF]='[0-9][0-9T:Z.+-]*' [MODEL_VERSION]=$number [BATCH]=$number [MAX_LAG]=$number [FORCE]=$either [SCORE]=$either
  [DEPLOY]=$either [REPLAY]=$either [DRY_RUN]=$either)
declare -A options=([AS_OF]=--as-of [REGISTRY]=--push [MODEL_VERSION]=--model-version [BATCH]=--to [MAX_LAG]=--max)

verb=${1:?a verb is missing; see bash/pipeline.sh -h} arguments=() words=() left_out=''
shift
stage=${STAGE_NAME:-$verb} build=${BUILD_TAG:-by hand} failure=reports/failure.txt
if [ "$(cat reports/build.txt 2>/dev/null)" != "$build" ]; then
  rm -rf reports
  mkdir reports
  printf '%s\n' "$build" >reports/build.txt
fi
if [ "$verb" = failure ]; then
  cat "$failure" 2>/dev/null || printf 'no verb failed: the reason stands above, from Jenkins itself\n'
  exit 0
fi
failed() { printf 'stage %s, bash/%s.sh: %s\n' "$stage" "$verb" "$1" >"$failure"; }

# Put the words of a parameter into `words`, checked.
read_parameter() {
  # It says 1 where the text ends without a NUL, as every text here does.
  read -r -d '' -a words <<<"${!1:-}" || true
  [[ ${words[*]} =~ ^(${patterns[$1]})?$ ]] && return
  failed "error: parameter $1 is $(printf %q "${!1}"), which does not match ${patterns[$1]}; nothing was run, start again with another"
  cat "$failure" >&2
  exit 2
}

for argument in "$@"; do
  [ -n "${patterns[$argument]:-}" ] || {
    arguments+=("$argument")
    continue
  }
  read_parameter "$argument"
  case $argument:${words[*]} in
  BATCH: | SCORE: | SCORE:false | DEPLOY: | DEPLOY:false | REPLAY: | REPLAY:false) left_out="$argument is not given" ;;
  *: | FORCE:false | SCORE:true | DEPLOY:true | REPLAY:true) ;;
  FORCE:true) arguments+=(--force) ;;
  *) arguments+=(${options[$argument]:+"${options[$argument]}"} "${words[@]}") ;;
  esac
done
read_parameter DRY_RUN
command="$verb.sh ${arguments[*]}"
[[ ${words[*]} != true || $command =~ ^(status.sh|extract.sh watermark show|stream.sh lag)( |$) ]] || left_out=${left_out:-"a dry run"}
if [ -n "$left_out" ]; then
  log "left out ($left_out): bash/$command"
  exit 0
fi

failed "stopped before it ended, by a time limit or by hand; run the same build again, each verb goes on where it was"
log "bash/$command"
code=0 kept=reports/${stage//[^A-Za-z0-9]/-}.log
touch "$kept"
# A stage that is tried again keeps what the attempts before it said, and tells what this one did.
before=$(wc -c <"$kept")
"bash/$verb.sh" "${arguments[@]}" 2>&1 | tee -a "$kept" || code=${PIPESTATUS[0]}
if [ "$code" = 0 ]; then
  rm "$failure"
else
  # Where there is no such line, the last one is told.
  said=$(tail -c "+$((before + 1))" "$kept" | grep -E '(^|: )error: ' | tail -n 1 || true)
  failed "exit code $code: ${said:-$(tail -n 1 "$kept")}"
fi
exit "$code"
