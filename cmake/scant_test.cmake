# Tests and fuzzers. Every test has exactly one kind as its CTest label; a slow one also has the
# label "long".

if(SCANT_TESTS)
  find_package(GTest REQUIRED)
endif()

# scant_test(<name> LABEL unit|property|sim|e2e|fuzz|long SOURCES a_test.cc ... USES base ...
#            LINK target ...)
# e2e tests measure real deadlines, so CTest gives them the machine to themselves.
function(scant_test name)
  if(NOT SCANT_TESTS)
    return()
  endif()
  cmake_parse_arguments(T "" "LABEL" "SOURCES;USES;LINK" ${ARGN})
  if(NOT T_LABEL MATCHES "^(unit|property|sim|e2e|fuzz|long)$")
    message(FATAL_ERROR "scant_test(${name}): LABEL ${T_LABEL} is not a kind of test")
  endif()
  add_executable(${name} ${T_SOURCES})
  foreach(used IN LISTS T_USES)
    target_link_libraries(${name} PRIVATE scant_${used})
  endforeach()
  target_link_libraries(${name} PRIVATE scant_flags ${T_LINK} GTest::gtest GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${T_LABEL} TIMEOUT 600)
  if(T_LABEL STREQUAL "e2e")
    set_tests_properties(${name} PROPERTIES RUN_SERIAL ON)
  endif()
endfunction()

# scant_fuzzer(<name> SOURCES a_fuzz.cc USES net ...): LLVMFuzzerTestOneInput plus
# tests/fuzz/corpus/<name>/. In the fuzz preset it is a libFuzzer program, replayed on its corpus
# (label fuzz) and run for a minute (label long). Elsewhere the same code replays the corpus as an
# ordinary test, with any compiler and sanitizer.
function(scant_fuzzer name)
  cmake_parse_arguments(F "" "" "SOURCES;USES" ${ARGN})
  set(corpus ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
  if(NOT IS_DIRECTORY ${corpus})
    message(FATAL_ERROR "scant_fuzzer(${name}): no corpus in ${corpus}")
  endif()
  add_executable(${name} ${F_SOURCES})
  foreach(used IN LISTS F_USES)
    target_link_libraries(${name} PRIVATE scant_${used})
  endforeach()
  target_link_libraries(${name} PRIVATE scant_flags)
  if(SCANT_FUZZ)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    add_test(NAME ${name} COMMAND ${name} -runs=0 ${corpus})
    file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz/${name})
    add_test(NAME ${name}_minute
             COMMAND ${name} -max_total_time=60 -print_final_stats=1
                     -artifact_prefix=${PROJECT_BINARY_DIR}/fuzz/${name}-
                     ${PROJECT_BINARY_DIR}/fuzz/${name} ${corpus})
    set_tests_properties(${name}_minute PROPERTIES LABELS "fuzz;long" TIMEOUT 180)
  else()
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cc)
    add_test(NAME ${name} COMMAND ${name} ${corpus})
  endif()
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 120)
endfunction()
