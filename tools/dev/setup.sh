# Sourced by ./dev: what a bare Debian 12 lacks. Each function is quick when there is nothing to do.
# A step that fails ends the script by "|| exit": errexit does not hold inside functions whose
# status is looked at.

packages_of() {
  case $1 in
    build) echo g++ cmake ninja-build pkg-config ccache git libsodium-dev libhwy-dev ;;
    python) echo python3-venv python3-dev ;;
    test) echo libgtest-dev libbenchmark-dev procps ;;
    lab) echo iproute2 procps ;;
    bench) echo openmpi-bin libopenmpi-dev ;;
    check) echo clang-14 clang-tidy-14 clang-format-14 shellcheck ;;
    fuzz) echo clang-14 libclang-rt-14-dev llvm-14 ;;
    coverage) echo gcovr ;;
    arm64) echo g++-aarch64-linux-gnu qemu-user googletest ;;
    *) die "no package group '$1'" ;;
  esac
}

# setup_packages group...: installs what is missing, as root or through sudo; says what to install
# where it cannot.
setup_packages() {
  local group package missing=()
  if ! python_can_build; then set -- "$@" python; fi
  if ! command -v dpkg-query >/dev/null; then
    if command -v c++ >/dev/null && command -v cmake >/dev/null && command -v ninja >/dev/null; then return 0; fi
    for group in "$@"; do mapfile -t -O ${#missing[@]} missing < <(packages_of "$group" | tr ' ' '\n'); done
    die "this is no Debian: install what Debian calls ${missing[*]}"
  fi
  for group in "$@"; do
    for package in $(packages_of "$group"); do
      # shellcheck disable=SC2016
      [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
        [[ " ${missing[*]} " == *" $package "* ]] || missing+=("$package")
    done
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  locked apt_install "${missing[@]}"
}

apt_install() {
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null || ! sudo -v; then
      die "missing Debian packages, and neither root nor sudo to install them: apt-get install $*"
    fi
    as_root=(sudo)
  fi
  export DEBIAN_FRONTEND=noninteractive
  # The lists may be absent or stale: refresh them once, only when something is to be installed.
  step apt-update "package lists" "${as_root[@]}" apt-get update || exit 1
  step apt-install "apt-get install $*" "${as_root[@]}" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" || exit 1
}

python=${PYTHON:-python3}

python_can_build() {
  command -v "$python" >/dev/null && "$python" -c '
import ensurepip, os, sys, sysconfig, venv
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' 2>/dev/null
}

has_torch='
import importlib.metadata, sys
found = tuple(int(part) for part in importlib.metadata.version("torch").split("+")[0].split(".")[:2])
sys.exit(found < (2, 6))'

setup_venv() {
  locked make_venv
}

# .venv with the tools of tools/requirements.txt and a torch: one that is installed already, if it
# is new enough.
make_venv() {
  if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      die "Python 3.10 or newer is needed; $python is $("$python" -V 2>&1)"
    if "$python" -c "$has_torch" 2>/dev/null; then
      step venv "Python environment .venv beside the installed torch" "$python" -m venv --system-site-packages .venv || exit 1
      # An active virtual environment is not the "system": point at its packages by name.
      .venv/bin/python -c "$has_torch" 2>/dev/null ||
        "$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
          >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/scant_parent.pth"
    else
      step venv "Python environment .venv" "$python" -m venv .venv || exit 1
    fi
  fi
  # First: tools that need a torch would bring the newest one.
  if ! .venv/bin/python -c "$has_torch" 2>/dev/null; then
    step pip-torch "torch 2.13.0 (large)" .venv/bin/python -m pip install torch==2.13.0 || exit 1
  fi
  local stamp=.venv/.scant-requirements want
  want=$(sha256sum <tools/requirements.txt)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    step pip-tools "Python packages of tools/requirements.txt" \
      .venv/bin/python -m pip install -r tools/requirements.txt || exit 1
    echo "$want" >"$stamp"
  fi
}

setup_scant() {
  locked install_scant
}

# The Python package, built in build/wheel-* and installed into .venv; again only when one of its
# inputs changed.
install_scant() {
  local stamp=.venv/.scant-package want
  want=$(hash_of include src python cmake CMakeLists.txt pyproject.toml sim/CMakeLists.txt)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    rm -f "$stamp"
    CMAKE_BUILD_PARALLEL_LEVEL=$jobs step pip-scant "Python package scant" \
      .venv/bin/python -m pip install --no-build-isolation --no-deps --force-reinstall . || exit 1
    echo "$want" >"$stamp"
  fi
}

preset_names() {
  "$python" -c '
import json
presets = json.load(open("CMakePresets.json"))["configurePresets"]
print(*(preset["name"] for preset in presets if not preset.get("hidden")))'
}

# configure_preset PRESET: its build files say what CMakeLists.txt says now.
configure_preset() {
  local preset=$1
  if [ -f "build/$preset/build.ninja" ]; then
    locked step "configure-$preset" "configure $preset" cmake --build "build/$preset" --target build.ninja || exit 1
  else
    locked step "configure-$preset" "configure $preset" cmake --preset "$preset" || exit 1
  fi
}

# build_preset PRESET [TARGET...]: all of it, or these targets.
build_preset() {
  locked configure_and_build "$@"
}

configure_and_build() {
  local preset=$1 targets=()
  shift
  [ $# -eq 0 ] || targets=(--target "$@")
  [ -f "build/$preset/build.ninja" ] ||
    step "configure-$preset" "configure $preset" cmake --preset "$preset" || exit 1
  step "build-$preset" "build $preset" cmake --build --preset "$preset" -j "$jobs" "${targets[@]}" || exit 1
}
