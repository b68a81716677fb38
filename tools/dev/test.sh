# Sourced by ./dev: ./dev test.

# What a test preset of CMakePresets.json sets, NAME=VALUE a line: the sanitizers' options.
preset_environment() {
  "$python" - "$1" <<'END'
import json, sys
presets = json.load(open("CMakePresets.json"))["testPresets"]
for preset in presets:
    if preset["name"] == sys.argv[1]:
        for name, value in preset.get("environment", {}).items():
            print(f"{name}={value}")
END
}

# One preset's C++ tests, one line a test; details in build/logs and, as XML, in build/results.
run_ctest() {
  local preset=$1 status=0
  shift
  local results=$root/build/results/$preset
  mkdir -p "$results"
  local environment=(GTEST_OUTPUT="xml:$results/") given
  given=$(preset_environment "$preset") || return 1
  [ -z "$given" ] || mapfile -t -O 1 environment <<<"$given"
  env "${environment[@]}" ctest --test-dir "build/$preset" --output-on-failure --no-tests=ignore -j "$jobs" \
    --output-junit "$results/ctest.xml" "$@" || status=1
  return $status
}

# run_pytest NAME MARKS argument...: of all tests that were selected those with these marks.
run_pytest() {
  local results=$root/build/results/python name=$1 marks=$2 status=0
  shift 2
  [ $long = 1 ] || marks="$marks and not long"
  mkdir -p "$results"
  .venv/bin/python -m pytest -o cache_dir=build/pytest-cache --junitxml="$results/$name.xml" -m "$marks" "$@" || status=$?
  [ $status -eq 5 ] && [ -n "$only" ] && return 0  # 5: no test has such a name
  return $status
}

# select_tests PRESET: what $only names there, as programs (a pattern for CTest), targets,
# python_files, python_options and package (built, or sources where these do). False, with one line
# on the screen, when it names nothing.
select_tests() {
  local preset=$1 key words lines options=()
  programs='.' targets=() python_files=(tests/python) python_options=() package=built
  [ -n "$only" ] || return 0
  [ $long = 0 ] || options+=(--long)
  configure_preset "$preset"
  lines=$("$python" tools/select_tests.py "$only" --build "build/$preset" "${options[@]}") || return 1
  programs='' python_files=()
  while read -r key words; do
    case $key in
      ctest) programs=$words ;;
      targets) read -ra targets <<<"$words" ;;
      python) read -ra python_files <<<"$words" ;;
      name) python_options+=(--name "$words") ;;
      package) package=$words ;;
    esac
  done <<<"$lines"
}

# test_programs PRESET CTEST_OPTION...: builds what was selected there, and runs it.
test_programs() {
  local preset=$1
  shift
  [ -n "$programs" ] || return 0
  if [ -z "$only" ] || [ ${#targets[@]} -gt 0 ]; then build_preset "$preset" "${targets[@]}"; fi
  say "C++ tests, $preset"
  run_ctest "$preset" -R "$programs" "$@"
}

test_python() {
  [ ${#python_files[@]} -gt 0 ] || return 0
  setup_packages build lab
  setup_venv
  if [ "$package" = sources ]; then
    local -x PYTHONPATH=$root/python
  else
    setup_scant
  fi
  local status=0 beside=()
  [ "$jobs" -eq 1 ] || beside=(-n "$jobs" --dist loadscope --no-loadscope-reorder)
  say "Python tests that run alone"
  run_pytest pytest-alone alone -q -rfE "${python_options[@]}" "${python_files[@]}" || status=1
  say "Python tests"
  run_pytest pytest "not alone" -q -rfE "${beside[@]}" "${python_options[@]}" "${python_files[@]}" || status=1
  return $status
}

# The products, the model's net and the codec on 64-bit ARM, in an emulator.
test_arm64() {
  setup_packages build test arm64
  rm -rf build/results
  mkdir -p build/results
  # The preset's compiler is a cross compiler.
  CXX='' build_preset arm64 base_test codec_kernels_test codec_tile_test serve_multiply_test serve_model_test
  say "C++ tests, arm64"
  run_ctest arm64 -R '^(base_test|codec_kernels_test|codec_tile_test|serve_multiply_test|serve_model_test)$'
}

run_tests() {
  local long=0 only=${SCANT_TEST_ONLY:-} status=0 preset begin=$SECONDS
  local programs targets python_files python_options package
  while [ $# -gt 0 ]; do
    case $1 in
      --long) long=1 ;;
      --arm64) test_arm64; return ;;
      --only)
        only=${2:-}
        [ -n "$only" ] || die "test: --only needs a name"
        shift
        ;;
      *) die "test: no option '$1'; there are: --long, --only NAME, --arm64" ;;
    esac
    shift
  done
  export SCANT_STRICT=ON  # as in the presets: the wheel and the library take the same objects
  setup_packages build test
  rm -rf build/results
  mkdir -p build/results
  local ctest_options=(-LE long)
  [ $long = 0 ] || ctest_options=()
  select_tests dev || exit 1
  test_programs dev "${ctest_options[@]}" || status=1
  test_python || status=1
  if [ $long = 1 ]; then
    for preset in asan tsan; do
      select_tests "$preset" || continue  # golden_test is not built there
      test_programs "$preset" -LE long || status=1
    done
  fi
  say "all tests took $((SECONDS - begin)) s"
  "$python" tools/test_summary.py --allowed-skips tests/allowed_skips.txt build/results || status=1
  return $status
}
