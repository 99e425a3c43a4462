#include <immintrin.h>

#define LPK_ISA avx2
#define LPK_LANES "lanes_avx2.inc"
#include "loops.inc"
