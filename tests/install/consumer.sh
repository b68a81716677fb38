#!/bin/sh
# consumer.sh installed|subdirectory CMAKE SOURCE BUILD FOLDER GENERATOR COMPILER FLAGS
# Builds examples/cpp on Scant as installed from BUILD, or as a part of its own build, and runs two
# ranks of it.
set -eu
way=$1 cmake=$2 source=$3 build=$4 folder=$5 generator=$6 compiler=$7 flags=$8

rm -rf "$folder"
mkdir -p "$folder/store"
case $way in
  installed)
    "$cmake" --install "$build" --prefix "$folder/prefix"
    if [ "$(ls "$folder/prefix/include")" != scant ]; then
      echo "more than the public headers was installed" >&2
      exit 1
    fi
    for name in communicator result store types; do # as they were called up to 0.1
      echo "#include \"scant/$name.h\"" >"$folder/old_name.cc"
      "$compiler" -std=c++20 -fsyntax-only -I "$folder/prefix/include" "$folder/old_name.cc"
    done
    option=-DCMAKE_PREFIX_PATH=$folder/prefix
    ;;
  subdirectory) option=-DSCANT_SOURCE=$source ;;
esac
"$cmake" -S "$source/examples/cpp" -B "$folder/build" -G "$generator" "$option" \
  -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_CXX_FLAGS="$flags"
"$cmake" --build "$folder/build" --target all_reduce

RANK=1 WORLD_SIZE=2 "$folder/build/all_reduce" "$folder/store" >"$folder/rank1" &
RANK=0 WORLD_SIZE=2 "$folder/build/all_reduce" "$folder/store" >"$folder/rank0"
wait $!
for rank in 0 1; do
  if [ "$(cat "$folder/rank$rank")" != "rank $rank of 2: 3 3 3 3" ]; then
    echo "rank $rank printed: $(cat "$folder/rank$rank")" >&2
    exit 1
  fi
done
