# Tests and fuzzers. The CTest labels of a test are its kind, its room, the plane that the room belongs to, if any, and
# "long" where it is slow. The files that it runs are its REQUIRED_FILES: ./dev test --only builds no others.

if(SCANT_TESTS AND CMAKE_CROSSCOMPILING)
  # GoogleTest's sources (Debian: googletest); the installed library is this machine's.
  set(INSTALL_GTEST OFF)
  set(BUILD_GMOCK OFF)
  add_subdirectory(/usr/src/googletest ${PROJECT_BINARY_DIR}/googletest EXCLUDE_FROM_ALL SYSTEM)
elseif(SCANT_TESTS)
  find_package(GTest REQUIRED)
endif()

# scant_test(<name> LABEL unit|property|sim|e2e|fuzz [LONG] SOURCES a_test.cc ... USES base ... LINK target ...
#            DEFINE macro ... DOCUMENT docs/x.md)
# The part of the name before the first "_" is the room, a second label. e2e tests measure real deadlines, so CTest
# gives them the machine to themselves. DOCUMENT: SCANT_DOCUMENT is that file, for tests that read its examples.
function(scant_test name)
  if(NOT SCANT_TESTS)
    return()
  endif()
  cmake_parse_arguments(T "LONG" "LABEL;DOCUMENT" "SOURCES;USES;LINK;DEFINE" ${ARGN})
  if(NOT T_LABEL MATCHES "^(unit|property|sim|e2e|fuzz)$")
    message(FATAL_ERROR "scant_test(${name}): LABEL ${T_LABEL} is not a kind of test")
  endif()
  add_executable(${name} ${T_SOURCES})
  foreach(used IN LISTS T_USES)
    target_link_libraries(${name} PRIVATE scant_${used})
  endforeach()
  target_link_libraries(${name} PRIVATE scant_flags ${T_LINK} GTest::gtest GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE ${T_DEFINE})
  # What is under test is optimised as installed; the tests themselves compile twice as fast this way.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  if(T_DOCUMENT)
    target_compile_definitions(${name} PRIVATE SCANT_DOCUMENT="${PROJECT_SOURCE_DIR}/${T_DOCUMENT}")
  endif()
  add_test(NAME ${name} COMMAND ${name})
  string(REGEX MATCH "^[a-z]+" room ${name})
  scant_labels(${name} KIND ${T_LABEL} ROOM ${room} LONG ${T_LONG} NEEDS ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 600)
  if(T_LABEL STREQUAL "e2e")
    set_tests_properties(${name} PROPERTIES RUN_SERIAL ON)
  endif()
endfunction()

# scant_labels(<test> KIND unit|property|sim|e2e|fuzz ROOM base|... [LONG TRUE] NEEDS target ...): the labels of a test,
# and the targets whose files it runs or installs.
function(scant_labels name)
  cmake_parse_arguments(L "" "KIND;ROOM;LONG" "NEEDS" ${ARGN})
  set(labels ${L_KIND} ${L_ROOM})
  foreach(plane IN LISTS SCANT_PLANES_KNOWN)
    if(L_ROOM IN_LIST SCANT_ROOMS_${plane})
      list(APPEND labels ${plane})
    endif()
  endforeach()
  if(L_LONG)
    list(APPEND labels long)
  endif()
  list(REMOVE_DUPLICATES labels)
  set(files "")
  foreach(target IN LISTS L_NEEDS)
    list(APPEND files $<TARGET_FILE:${target}>)
  endforeach()
  set_tests_properties(${name} PROPERTIES LABELS "${labels}" REQUIRED_FILES "${files}")
endfunction()

# scant_fuzzer(<name> ROOM net SOURCES a_fuzz.cc): LLVMFuzzerTestOneInput plus tests/fuzz/corpus/<name>/. In the fuzz
# preset it is a libFuzzer program, replayed on its corpus and run for a minute (label long). Elsewhere the same code
# replays the corpus as an ordinary test, with any compiler and sanitizer.
function(scant_fuzzer name)
  cmake_parse_arguments(F "" "ROOM" "SOURCES" ${ARGN})
  set(corpus ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
  if(NOT IS_DIRECTORY ${corpus})
    message(FATAL_ERROR "scant_fuzzer(${name}): no corpus in ${corpus}")
  endif()
  add_executable(${name} ${F_SOURCES})
  target_link_libraries(${name} PRIVATE scant_${F_ROOM} scant_flags)
  if(SCANT_FUZZ)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    add_test(NAME ${name} COMMAND ${name} -runs=0 ${corpus})
    file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz/${name})
    add_test(NAME ${name}_minute
             COMMAND ${name} -max_total_time=60 -print_final_stats=1
                     -artifact_prefix=${PROJECT_BINARY_DIR}/fuzz/${name}-
                     ${PROJECT_BINARY_DIR}/fuzz/${name} ${corpus})
    scant_labels(${name}_minute KIND fuzz ROOM ${F_ROOM} LONG TRUE NEEDS ${name})
    set_tests_properties(${name}_minute PROPERTIES TIMEOUT 180)
  else()
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cc)
    add_test(NAME ${name} COMMAND ${name} ${corpus})
  endif()
  scant_labels(${name} KIND fuzz ROOM ${F_ROOM} NEEDS ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 120)
endfunction()
