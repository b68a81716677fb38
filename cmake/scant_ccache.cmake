# Compiler output is cached when ccache is installed and nobody chose another launcher.
option(SCANT_CCACHE "Use ccache when it is installed" ON)
if(SCANT_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(SCANT_CCACHE_PROGRAM ccache)
  if(SCANT_CCACHE_PROGRAM)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${SCANT_CCACHE_PROGRAM})
  endif()
endif()
