#define LPK_ISA avx2
#include "loops.inc"
