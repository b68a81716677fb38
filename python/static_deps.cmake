# Included right after project() when a wheel is built (pyproject.toml): libraries are taken as static archives, so that
# the wheel needs nothing but libc at run time.
set(CMAKE_FIND_LIBRARY_SUFFIXES .a)
