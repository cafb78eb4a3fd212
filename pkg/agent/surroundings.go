package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/weft-cni/weft/internal/preflight"
	"github.com/weft-cni/weft/internal/unixctl"
	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/host"
)

// surroundings are questions about what of the node is not Weft's. None of them changes anything.
type surroundings struct {
	// preceding are other plugins' configurations that the container runtime takes instead of Weft's.
	preceding func(dir string) ([]string, error)
	// proxyRules are kube-proxy's.
	proxyRules func() ([]string, error)
	// kernelDatapath fails while the kernel has no Open vSwitch.
	kernelDatapath func() error
	// advertisements are the links whose router advertisements the kernel ignores.
	advertisements func() ([]string, error)
	// version is what ovs-vswitchd says of itself; an error while it does not run.
	version func(ctx context.Context, runDir string) (string, error)
}

// theNode asks the node itself, whose network is the agent's.
var theNode = surroundings{
	preceding: cni.Preceding, proxyRules: host.ProxyRules, kernelDatapath: host.KernelDatapath,
	advertisements: func() ([]string, error) { return preflight.IgnoredAdvertisements("/") },
	version: func(ctx context.Context, runDir string) (string, error) {
		socket, err := unixctl.Socket(runDir, "ovs-vswitchd")
		if err != nil {
			return "", err
		}
		return unixctl.Call(ctx, socket, "version")
	},
}

// What of the surroundings is in Weft's way is a problem of its own. None of them keeps the agent from becoming ready:
// where it cannot, the part that waits says so, too.
const (
	surroundingsPart      = "surroundings"
	otherPluginProblem    = "other CNI plugins"
	proxyProblem          = "kube-proxy"
	moduleProblem         = "kernel module"
	advertisementsProblem = "router advertisements"
	versionProblem        = "Open vSwitch version"
)

// beside are the problems that are not what a start waits for.
var beside = map[string]bool{
	otherPluginProblem: true, proxyProblem: true, advertisementsProblem: true, versionProblem: true, moduleProblem: true,
	surroundingsPart: true,
}

// syncSurroundings names what of the node is in Weft's way. It returns the questions that have no answer.
func (a *Agent) syncSurroundings(ctx context.Context) error {
	cfg, ask := a.config(), a.around

	files, fileErr := ask.preceding(a.opt.CNIConfDir)
	a.setProblem(otherPluginProblem, problemIf(len(files) > 0, "%s in %s come first by name, so the container runtime takes "+
		"them and not %s: remove the other plugin and its files", strings.Join(files, ", "),
		strings.TrimPrefix(a.opt.CNIConfDir, "/host"), cni.ConfListName))

	rules, ruleErr := ask.proxyRules()
	a.setProblem(proxyProblem, problemIf(len(rules) > 0, "its rules are in nftables (%s) and translate packets to Services before "+
		"Weft does: end kube-proxy on this node and run kube-proxy --cleanup", strings.Join(rules, ", ")))

	var kernelErr error
	if cfg.Datapath == config.DatapathSystem {
		kernelErr = ask.kernelDatapath()
	}
	a.setProblem(moduleProblem, kernelErr)

	links, linkErr := ask.advertisements()
	a.setProblem(advertisementsProblem, problemIf(len(links) > 0, "the node forwards IPv6, so the kernel ignores those on %s: %s",
		strings.Join(links, ", "), preflight.AcceptAdvertisements(links)))

	version, err := ask.version(ctx, a.ovsRunDir())
	upgrade := ""
	if err == nil { // or else OVSDB or the bridge is not ready
		upgrade = preflight.Upgrade(version)
	}
	a.setProblem(versionProblem, problemIf(upgrade != "", "%s: %s", strings.TrimSpace(version), upgrade))
	return errors.Join(fileErr, ruleErr, linkErr)
}

// problemIf is an error if something is so.
func problemIf(is bool, format string, args ...any) error {
	if !is {
		return nil
	}
	return fmt.Errorf(format, args...)
}
