// Package plan is what the host tells the guest's first process, and what that reports back. The values are plain data.
package plan

// Names that both sides know.
const (
	// File is where the plan lies in the initial RAM disk, ModuleDir the modules that are needed before the root is there.
	File      = "/plan.json"
	ModuleDir = "/modules"

	// RootTag and ResultsTag name the shared directories: the host's root, read-only, and the one for results.
	RootTag    = "root"
	ResultsTag = "results"
	// OutputPort is the virtio port that carries the command's output.
	OutputPort = "weft.output"

	// Scratch is an empty directory in memory, Results the one that the host sees too.
	Scratch = "/guest/scratch"
	Results = "/guest/results"

	// ExitFile in the results holds the command's exit status; without it, the guest did not get that far.
	ExitFile = "exit-status"
)

// Plan is what the guest does.
type Plan struct {
	// Modules are the kernel modules to load from ModuleDir, in this order.
	Modules []string `json:"modules"`
	// KernelModules is the host's directory that becomes /lib/modules/<version>, and Probe the modules to load from there.
	KernelModules string   `json:"kernelModules"`
	Probe         []string `json:"probe"`
	// Command is what to run, in Dir and with Env.
	Command []string `json:"command"`
	Dir     string   `json:"dir"`
	Env     []string `json:"env"`
}
