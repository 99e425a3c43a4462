#define LPK_ISA portable
#define LPK_LANES "lanes_portable.inc"
#include "loops.inc"
