// What a test may turn in the pretended GPU. Applies to every launch from now on; one thread only.
#pragma once

extern "C" {

// Bit 0: threads and blocks run last first. Bit 1: asynchronous copies happen at once. A correct kernel gives the same bits
// under all four.
void cuda_on_cpu_schedule(int schedule);

// The launch after so many successful ones is refused; -1, the state at the start, refuses none.
void cuda_on_cpu_refuse_after(int launches);

}  // extern "C"
