# Whether the TensorRT backend is built: FOPRU_HAVE_TENSORRT, and FOPRU_TENSORRT_INCLUDE_DIRS with the headers of
# TensorRT and of the CUDA runtime. src/backend/tensorrt/CMakeLists.txt picks its files by the former.
option(FOPRU_TENSORRT_DOUBLE "Build the TensorRT backend against the stand-ins of tests/doubles" OFF)
find_path(FOPRU_NVINFER_INCLUDE_DIR NvInfer.h HINTS ENV TENSORRT_ROOT PATH_SUFFIXES include)
find_path(FOPRU_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES include)
set(FOPRU_HAVE_TENSORRT OFF)
if(FOPRU_TENSORRT_DOUBLE)
  set(FOPRU_HAVE_TENSORRT ON)
elseif(FOPRU_WITH_TENSORRT AND FOPRU_NVINFER_INCLUDE_DIR AND FOPRU_CUDA_INCLUDE_DIR)
  set(FOPRU_HAVE_TENSORRT ON)
  set(FOPRU_TENSORRT_INCLUDE_DIRS ${FOPRU_NVINFER_INCLUDE_DIR} ${FOPRU_CUDA_INCLUDE_DIR})
elseif(FOPRU_WITH_TENSORRT AND NOT FOPRU_WITH_TENSORRT STREQUAL AUTO)
  message(FATAL_ERROR "FOPRU_WITH_TENSORRT is ${FOPRU_WITH_TENSORRT}, but NvInfer.h (${FOPRU_NVINFER_INCLUDE_DIR}) or "
    "cuda_runtime_api.h (${FOPRU_CUDA_INCLUDE_DIR}) was not found: set TENSORRT_ROOT and CUDA_HOME, or leave it AUTO")
endif()
message(STATUS "fopru_rt: TensorRT backend ${FOPRU_HAVE_TENSORRT}")
