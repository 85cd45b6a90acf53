// What a build looks for to find TensorRT; see NvInferRuntime.h.
#pragma once

#include "NvInferRuntime.h"
