# Sourced by ./dev: words on the screen, logged steps, locks. Expects $root and the repository as
# working directory.
logs=$root/build/logs
jobs=${JOBS:-$(nproc)}
# Builds in build/NAME with the same options share ccache's objects: paths are relative there. What
# is new costs no extra run of the preprocessor: the compiler's list of dependencies serves.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1
export CXX=${CXX:-c++}  # one name for all: scikit-build-core would take the one that built Python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# Ctrl-C: stop what runs in the background, then this script, with the code that a shell expects.
stop() {
  local job tries
  trap '' INT TERM HUP
  for job in $(jobs -p); do  # each a process group
    kill -TERM -- "-$job" 2>/dev/null || continue
    for ((tries = 0; tries < 50; tries++)); do
      kill -0 -- "-$job" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL -- "-$job" 2>/dev/null || true
  done
  echo "./dev: stopped" >&2
  exit 130
}
trap stop INT TERM HUP

say() { printf '==> %s\n' "$*"; }

die() {
  echo "./dev: $*" >&2
  exit 1
}

# fit TEXT COLUMNS: the text; of a longer one its begin and its end.
fit() {
  local text=$1 columns=$2 head
  head=$((columns / 4))
  if [ "$columns" -lt 8 ]; then
    text=''
  elif [ ${#text} -gt "$columns" ]; then
    text=${text:0:head}..${text: -$((columns - head - 2))}
  fi
  printf '%s' "$text"
}

terminal_columns() {
  local size
  size=$(stty size <&1 2>/dev/null) && size=${size#* } && [ "$size" -gt 0 ] || size=80
  echo "$size"
}

# step NAME "what it does" command...: runs it with its output in build/logs/NAME.log; shows time
# while it runs and the end of the log when it fails.
step() {
  local name=$1 words=$2 begin=$SECONDS status=0 log=$logs/$1.log pid line last
  shift 2
  mkdir -p "$logs"
  if [ ! -t 1 ]; then printf '==> %s ... ' "$words"; fi
  set -m  # a process group of its own, so that stop() reaches its children
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  set +m
  if [ -t 1 ]; then
    while kill -0 "$pid" 2>/dev/null; do
      line="==> $words ($((SECONDS - begin)) s) "
      last=$(tail -n 1 "$log" 2>/dev/null | LC_ALL=C tr -cd '[:print:]')
      # One column stays free: a full line would go on in the next one, which \r does not clear.
      last=$(fit "$last" $(($(terminal_columns) - ${#line} - 1)))
      printf '\r\033[K%s' "$line$last"
      sleep 0.3
    done
    printf '\r\033[K==> %s ' "$words"
  fi
  wait "$pid" || status=$?
  if [ $status -eq 0 ]; then
    printf 'done in %d s\n' $((SECONDS - begin))
    return 0
  fi
  printf 'FAILED after %d s\n' $((SECONDS - begin))
  echo "--- the end of ${log#"$root"/}:" >&2
  tail -n 40 "$log" >&2
  return $status
}

# locked command...: one set-up at a time in this checkout, whoever starts ./dev twice.
locked() {
  mkdir -p build
  if [ "${SCANT_DEV_LOCKED:-}" = 1 ]; then
    "$@"
    return
  fi
  exec 9>build/.lock
  if ! flock -n 9; then
    say "waiting for another ./dev in this checkout"
    flock 9
  fi
  local status=0
  SCANT_DEV_LOCKED=1
  "$@" || status=$?
  SCANT_DEV_LOCKED=''
  exec 9>&-
  return $status
}

# hash_of path...: one hash over names and contents of the files below these paths, tests left out.
hash_of() {
  find "$@" -type f -not -path '*/__pycache__/*' -not -name '*.pyc' \
    -not -path '*/testing/*' -not -name '*_test.cc' -print0 | sort -z |
    xargs -0 sha256sum | sha256sum | cut -d' ' -f1
}

run_python() { exec "$root/.venv/bin/python" "$@"; }
