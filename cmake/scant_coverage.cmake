# `cmake --workflow coverage` ends here: build/coverage/coverage.html and a table of lines, from
# what the tests ran.
find_program(SCANT_GCOVR gcovr)
if(SCANT_GCOVR)
  add_custom_target(coverage_report
    COMMAND ${SCANT_GCOVR} --root ${PROJECT_SOURCE_DIR} --exclude-throw-branches
            --filter ${PROJECT_SOURCE_DIR}/src --filter ${PROJECT_SOURCE_DIR}/include
            --exclude .*_test\\.cc --print-summary --txt ${PROJECT_BINARY_DIR}/coverage.txt
            --html-details ${PROJECT_BINARY_DIR}/coverage.html ${PROJECT_BINARY_DIR}
    COMMAND ${CMAKE_COMMAND} -E cat ${PROJECT_BINARY_DIR}/coverage.txt
    VERBATIM)
else()
  add_custom_target(coverage_report
    COMMAND ${CMAKE_COMMAND} -E echo "coverage_report needs gcovr (apt-get install gcovr)"
    COMMAND ${CMAKE_COMMAND} -E false
    VERBATIM)
endif()
