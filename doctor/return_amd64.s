#include "textflag.h"

// func callReturning()
TEXT ·callReturning(SB), NOSPLIT, $0-0
	CALL ·returning<>(SB)
	RET

// returning is what return probes are tried on. The probe replaces its return
// address; nothing can move the stack meanwhile: assembly that is NOSPLIT grows no
// stack and is never preempted.
TEXT ·returning<>(SB), NOSPLIT|NOFRAME, $0-0
	PUSHQ BP
	MOVQ  SP, BP
	POPQ  BP
	RET
