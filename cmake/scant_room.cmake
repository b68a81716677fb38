# A room is one static library whose headers are seen only by the rooms that name it in USES. Each
# room gets an include root of its own (build/rooms/<room>/, holding one symbolic link), so an
# include upwards does not compile; tests/include_order proves that it does not.

find_package(Threads REQUIRED)

add_library(scant_flags INTERFACE)
target_compile_options(scant_flags INTERFACE -Wall -Wextra -Wconversion -Wshadow -ffp-contract=off)
# ./dev asks through the environment for builds that pip or a reader's command configures.
if(SCANT_STRICT OR "$ENV{SCANT_STRICT}" STREQUAL "ON")
  target_compile_options(scant_flags INTERFACE -Werror)
endif()
if(SCANT_SANITIZE)
  target_compile_options(scant_flags INTERFACE -fsanitize=${SCANT_SANITIZE} -fno-sanitize-recover=all
                                               -fno-omit-frame-pointer)
  target_link_options(scant_flags INTERFACE -fsanitize=${SCANT_SANITIZE})
endif()
if(SCANT_FUZZ)
  target_compile_options(scant_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
if(SCANT_COVERAGE)
  target_compile_options(scant_flags INTERFACE --coverage -fprofile-update=atomic)
  target_link_options(scant_flags INTERFACE --coverage)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(scant_flags INTERFACE -Wthread-safety)
endif()

add_library(scant_api INTERFACE)
target_include_directories(scant_api INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
target_compile_features(scant_api INTERFACE cxx_std_20)

# scant_room(<name> SOURCES a.cc ... USES base net ... LINK target ...)
function(scant_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;USES;LINK" ${ARGN})
  set(root ${PROJECT_BINARY_DIR}/rooms/${name})
  file(MAKE_DIRECTORY ${root})
  file(CREATE_LINK ${CMAKE_CURRENT_SOURCE_DIR} ${root}/${name} SYMBOLIC)
  add_library(scant_${name} STATIC ${ROOM_SOURCES})
  target_include_directories(scant_${name} PUBLIC $<BUILD_INTERFACE:${root}>)
  target_link_libraries(scant_${name} PUBLIC scant_api Threads::Threads)
  target_link_libraries(scant_${name} PRIVATE $<BUILD_INTERFACE:scant_flags> ${ROOM_LINK})
  foreach(used IN LISTS ROOM_USES)
    target_link_libraries(scant_${name} PUBLIC scant_${used})
  endforeach()
endfunction()

# What several tests of a room share (<room>/testing/): scant_testing(<room> SOURCES a.cc ... LINK target ...) makes
# scant_<room>_testing, which no product code links.
function(scant_testing name)
  if(NOT SCANT_TESTS)
    return()
  endif()
  cmake_parse_arguments(ROOM "" "" "SOURCES;LINK" ${ARGN})
  add_library(scant_${name}_testing STATIC ${ROOM_SOURCES})
  target_link_libraries(scant_${name}_testing PUBLIC scant_${name} PRIVATE scant_flags ${ROOM_LINK})
endfunction()

# Highway as headers alone: each source of kernels chooses its own target, so that nothing has to be linked or
# shipped. Highway's own assertions would need its library.
function(scant_highway room)
  find_path(SCANT_HIGHWAY_INCLUDE hwy/highway.h REQUIRED DOC "Google Highway (Debian: libhwy-dev)")
  target_include_directories(scant_${room} SYSTEM PRIVATE ${SCANT_HIGHWAY_INCLUDE})
  target_compile_definitions(scant_${room} PRIVATE HWY_IS_DEBUG_BUILD=0)
endfunction()
