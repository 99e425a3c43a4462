#include <immintrin.h>

#define LPK_ISA avx512
#define LPK_LANES "lanes_avx512.inc"
#include "loops.inc"
