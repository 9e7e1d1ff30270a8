/*  test_system on a host of the other byte order, as far as one can be had here: every number that goes into
    a file or comes out of one is swapped, so that a place that copies its bytes without the helpers of >>bytes
    on one way only gives another model, or none. */
#define PVTI_SWAPS 1 /* before what does: #define PVTUNE_IMPLEMENTATION */
#include "test_system.c"
