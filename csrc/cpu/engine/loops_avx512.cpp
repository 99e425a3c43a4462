#define LPK_ISA avx512
#include "loops.inc"
