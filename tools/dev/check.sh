# Sourced by ./dev: ./dev check and ./dev format. Every check runs, whatever an earlier one said;
# the end lists failures.

cc_files() { git ls-files --cached --others --exclude-standard -- '*.cc' '*.h'; }
python_roots() {
  local path
  for path in python/scant tools bench examples tests; do
    if [ -n "$(find "$path" -name '*.py' -print -quit 2>/dev/null)" ]; then echo "$path"; fi
  done
}

check_format() {
  local status=0
  cc_files | xargs clang-format-14 --dry-run --Werror || status=1
  # shellcheck disable=SC2046
  .venv/bin/ruff format --check $(python_roots) || status=1
  return $status
}

# shellcheck disable=SC2046
check_lint() {
  local status=0
  .venv/bin/ruff check $(python_roots) || status=1
  shellcheck -x -a dev .ci/run || status=1
  .venv/bin/python tools/check_style.py || status=1
  return $status
}

# Programs are checked one folder at a time: two scripts of different folders may share a name.
check_types() {
  local status=0 path
  for path in python/scant tools bench examples tests/python; do
    if [ -d "$path" ] && [ -n "$(find "$path" -name '*.py' -print -quit)" ]; then
      .venv/bin/mypy "$path" || status=1
    fi
  done
  return $status
}

check_gcc() { cmake --preset dev && cmake --build --preset dev -j "$jobs"; }
check_tidy() {
  local options=()
  [ "$long" = 0 ] || options+=(--all)
  cmake --preset clang && .venv/bin/python tools/run_tidy.py --build build/clang --jobs "$jobs" "${options[@]}"
}
check_includes() {
  cmake --preset dev >/dev/null &&
    ctest --test-dir build/dev -R '^include_order' --no-tests=error --output-on-failure
}
check_links() { .venv/bin/python tools/check_docs.py links; }
check_figures() { .venv/bin/python bench/measured.py --check; }
check_commands() {
  local options=()
  [ "$long" = 0 ] || options+=(--long)
  .venv/bin/python tools/check_docs.py commands "${options[@]}"
}

run_checks() {
  local only=${SCANT_CHECK_ONLY:-} long=0 failed=() begin=$SECONDS
  while [ $# -gt 0 ]; do
    case $1 in
      --long) long=1 ;;
      --only)
        only=${2:-}
        [ -n "$only" ] || die "check: --only needs a name"
        shift
        ;;
      *) die "check: no option '$1'; there are: --long, --only NAME" ;;
    esac
    shift
  done
  local rows=(
    "format|clang-format and ruff format"
    "lint|ruff, shellcheck, file and function sizes"
    "gcc|no warnings with GCC"
    "tidy|no warnings with Clang, clang-tidy (what changed last)"
    "includes|no include that docs/architecture.md rules out"
    "types|mypy --strict"
    "links|links and anchors of the documents"
    "figures|figures in the documents are those of bench/results"
    "commands|the commands shown in the documents"
  )
  local row name words names=() ran=0
  for row in "${rows[@]}"; do names+=("${row%%|*}"); done
  [ -z "$only" ] || [[ " ${names[*]} " == *" $only "* ]] || die "check: no check '$only'; there are: ${names[*]}"
  export SCANT_STRICT=ON  # as in the presets: the wheel and the library take the same objects
  setup_packages build test lab check
  setup_venv
  mkdir -p build
  for row in "${rows[@]}"; do
    name=${row%%|*} words=${row#*|}
    [ $long = 0 ] || words=${words/what changed last/all sources}
    if [ -n "$only" ] && [ "$only" != "$name" ]; then continue; fi
    ran=$((ran + 1))
    case $name in figures | commands) setup_scant ;; esac
    case $name in
      commands) say "$words"; check_commands || failed+=("$name") ;;  # each command is a line of progress
      gcc | tidy) locked step "check-$name" "$words" "check_$name" || failed+=("$name") ;;
      *) step "check-$name" "$words" "check_$name" || failed+=("$name") ;;
    esac
  done
  say "$ran checks in $((SECONDS - begin)) s, ${#failed[@]} failed${failed[*]:+: ${failed[*]}}"
  [ ${#failed[@]} -eq 0 ]
}

# shellcheck disable=SC2046
run_format() {
  setup_packages build check
  setup_venv
  cc_files | xargs clang-format-14 -i
  .venv/bin/ruff format -q $(python_roots)
  .venv/bin/ruff check -q --fix --exit-zero --select I $(python_roots)
}
