# cmake --install: public headers, static libraries and what find_package(scant) reads. The rooms'
# own headers stay behind.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/scant)
foreach(room IN ITEMS base codec net collective)
  if(TARGET scant_${room})
    list(APPEND SCANT_ROOMS_INSTALLED scant_${room})
  endif()
endforeach()
install(TARGETS scant scant_api ${SCANT_ROOMS_INSTALLED} EXPORT scant INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY include/scant DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT scant NAMESPACE scant:: FILE scant-targets.cmake DESTINATION ${package})
write_basic_package_version_file(scant-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES cmake/scant-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/scant-config-version.cmake
        DESTINATION ${package})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
