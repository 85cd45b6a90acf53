# Cross-build with Debian's or Ubuntu's compiler and its arm64 libraries (dpkg --add-architecture arm64, then
# libpcre2-dev:arm64 and so on). Programs run under qemu-user where it is installed.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

# Headers that are the same on every machine are in /usr/include, where the cross compiler does not look. Last, so that
# its own C library comes first.
foreach(language C CXX)
  set(CMAKE_${language}_FLAGS_INIT "-idirafter /usr/include/aarch64-linux-gnu -idirafter /usr/include")
endforeach()

find_program(FOPRU_QEMU NAMES qemu-aarch64 qemu-aarch64-static)
# All libraries of the cross compiler: where the arm64 C library is installed too, the loader of one would take the
# other's, and the first thread that is started hangs.
if(FOPRU_QEMU)
  set(sysroot /usr/aarch64-linux-gnu)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${FOPRU_QEMU} -L ${sysroot} -E LD_LIBRARY_PATH=${sysroot}/lib)
endif()
