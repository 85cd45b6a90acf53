# fopru_find_static(<target> <header> <library> [SYMBOLS <symbol>...]): an imported target of a small library, as an
# archive where there is one, so that a device needs nothing installed. <target>_FOUND says whether header and library
# were found; <target>_STATIC whether it is the archive.
#
# Some archives are not made for shared libraries, Debian's libjpeg.a in one of its files. An archive is taken only if
# it links into one: all of it, or what SYMBOLS pull in.
function(fopru_find_static target header library)
  cmake_parse_arguments(PARSE_ARGV 3 arg "" "" "SYMBOLS")
  string(MAKE_C_IDENTIFIER ${target} prefix)
  set(archive ${CMAKE_STATIC_LIBRARY_PREFIX}${library}${CMAKE_STATIC_LIBRARY_SUFFIX})
  find_path(${prefix}_INCLUDE_DIR ${header})
  find_library(${prefix}_ARCHIVE NAMES ${archive})
  find_library(${prefix}_SHARED NAMES ${library})
  mark_as_advanced(${prefix}_INCLUDE_DIR ${prefix}_ARCHIVE ${prefix}_SHARED)
  set(${target}_STATIC OFF PARENT_SCOPE)
  set(place ${${prefix}_SHARED})
  if(${prefix}_ARCHIVE)
    fopru_check_archive(${prefix} "${arg_SYMBOLS}")
    if(${prefix}_LINKS)
      set(place ${${prefix}_ARCHIVE})
      set(${target}_STATIC ON PARENT_SCOPE)
    else()
      message(STATUS "fopru_rt: ${${prefix}_ARCHIVE} cannot go into a shared library, ${place} is needed at run time")
    endif()
  endif()
  if(NOT ${prefix}_INCLUDE_DIR OR NOT place)
    set(${target}_FOUND OFF PARENT_SCOPE)
    return()
  endif()
  set(${target}_FOUND ON PARENT_SCOPE)
  if(NOT TARGET ${target})
    add_library(${target} UNKNOWN IMPORTED GLOBAL)
    set_target_properties(${target} PROPERTIES
      IMPORTED_LOCATION ${place} INTERFACE_INCLUDE_DIRECTORIES ${${prefix}_INCLUDE_DIR})
  endif()
endfunction()

# <prefix>_LINKS, kept between runs for an archive and its symbols.
function(fopru_check_archive prefix symbols)
  set(asked ${${prefix}_ARCHIVE} ${symbols})
  if(DEFINED ${prefix}_LINKS AND "${${prefix}_ASKED}" STREQUAL "${asked}")
    return()
  endif()
  if(symbols)
    list(TRANSFORM symbols PREPEND -Wl,-u,)
    set(link ${symbols} ${${prefix}_ARCHIVE})
  else()
    set(link -Wl,--whole-archive ${${prefix}_ARCHIVE} -Wl,--no-whole-archive)
  endif()
  set(folder ${CMAKE_BINARY_DIR}/CMakeFiles/${prefix})
  file(WRITE ${folder}/nothing.c "int nothing(void) { return 0; }\n")
  unset(${prefix}_LINKS CACHE)
  # The options of fopru_rt, on what CMake takes for a program.
  try_compile(${prefix}_LINKS ${folder} SOURCES ${folder}/nothing.c COMPILE_DEFINITIONS -fPIC
    LINK_OPTIONS -shared -Wl,--exclude-libs,ALL LINK_LIBRARIES ${link})
  set(${prefix}_ASKED "${asked}" CACHE INTERNAL "")
endfunction()
