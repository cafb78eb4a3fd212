package agent

import (
	"os"
	"runtime/debug"
)

// steadyGC is the garbage collector's target, as in GOGC, once the agent is ready. At its start, when it decodes all
// objects and compiles everything, the runtime's own target of 100 costs a fifth less processor time. Afterwards an
// agent has little to collect, and half of what it holds, on every node of a cluster, is a poor bargain for the few
// milliseconds that a rarer collection saves.
const steadyGC = 50

// slim gives back what the start needed and the agent does not. A user who sets GOGC has chosen the collector's target.
func slim() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(steadyGC)
	}
	debug.FreeOSMemory()
}
