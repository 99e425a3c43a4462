#define LPK_ISA portable
#include "loops.inc"
