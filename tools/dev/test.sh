# Sourced by ./dev: ./dev test.

# One preset's C++ tests, one line a test; details in build/logs and, as XML, in build/results.
run_ctest() {
  local preset=$1 status=0
  shift
  local results=$root/build/results/$preset
  rm -rf "$results"
  mkdir -p "$results"
  local environment=(GTEST_OUTPUT="xml:$results/")
  case $preset in
    asan) environment+=(ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1) ;;
    tsan) environment+=(TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1) ;;
  esac
  env "${environment[@]}" ctest --test-dir "build/$preset" --output-on-failure --no-tests=ignore -j "$jobs" \
    --output-junit "$results/ctest.xml" "$@" || status=1
  return $status
}

run_pytest() {
  local results=$root/build/results/python
  rm -rf "$results"
  mkdir -p "$results"
  local status=0
  .venv/bin/python -m pytest tests/python -o cache_dir=build/pytest-cache --junitxml="$results/pytest.xml" "$@" ||
    status=$?
  [ $status -eq 5 ] && [ -n "$only" ] && return 0  # 5: no test has such a name
  return $status
}

run_tests() {
  local long=0 only=${SCANT_TEST_ONLY:-} status=0 preset begin=$SECONDS
  while [ $# -gt 0 ]; do
    case $1 in
      --long) long=1 ;;
      --only) only=${2:?--only needs a name}; shift ;;
      *) die "test: no option '$1'" ;;
    esac
    shift
  done
  export SCANT_STRICT=ON  # as in the presets: the wheel and the library take the same objects
  setup_packages build test lab
  setup_venv
  build_preset dev
  setup_scant

  local ctest_options=() pytest_options=(-q -rfE) sanitizers=()
  if [ -n "$only" ]; then
    ctest_options+=(-R "$only")
    pytest_options+=(-k "$only")
  fi
  if [ $long = 1 ]; then
    pytest_options+=(-m '')
    sanitizers=(asan tsan)
  else
    ctest_options+=(-LE long)
  fi
  rm -rf build/results
  say "C++ tests"
  run_ctest dev "${ctest_options[@]}" || status=1
  say "Python tests"
  run_pytest "${pytest_options[@]}" || status=1
  for preset in "${sanitizers[@]}"; do
    build_preset "$preset"
    say "C++ tests under $preset"
    run_ctest "$preset" "${ctest_options[@]}" -LE long || status=1
  done
  say "all tests took $((SECONDS - begin)) s"
  .venv/bin/python tools/test_summary.py --allowed-skips tests/allowed_skips.txt build/results || status=1
  return $status
}
