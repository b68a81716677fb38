# SCANT_BPF: the packet tables of the lab's loss program, judged by this machine's kernel, as a test. The program is
# assembled in Python, so there is nothing to compile; the environment that ./dev test makes runs it.
set(python ${PROJECT_SOURCE_DIR}/.venv/bin/python)
if(NOT EXISTS ${python})
  message(FATAL_ERROR "SCANT_BPF needs ${python}: run ./dev test first")
endif()
add_test(NAME lab_bpf_test COMMAND ${python} -m pytest -q -rs -p no:cacheprovider tests/python/lab/test_lab_loss.py
         WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
scant_labels(lab_bpf_test e2e "")
set_tests_properties(lab_bpf_test PROPERTIES TIMEOUT 600)
