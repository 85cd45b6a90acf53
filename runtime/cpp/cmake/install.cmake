# Library, header, find_package(fopru_rt) and pkg-config.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fopru_rt)
install(TARGETS fopru_rt EXPORT fopru_rt
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/fopru DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT fopru_rt NAMESPACE fopru:: FILE fopru_rt-config.cmake DESTINATION ${package_dir})
# As the soname says (SOVERSION): functions and fields are only added, so a later version serves all earlier ones.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/fopru_rt-config-version.cmake
  COMPATIBILITY AnyNewerVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fopru_rt-config-version.cmake DESTINATION ${package_dir})

# From the file itself, so that an installed tree may be moved.
file(RELATIVE_PATH FOPRU_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/fopru_rt.pc.in ${CMAKE_CURRENT_BINARY_DIR}/fopru_rt.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fopru_rt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
