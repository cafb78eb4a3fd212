// Package conformance says which of Kubernetes' own specs Weft has to pass, and reads what a run of them found.
//
// It holds no state; its functions may be called from any goroutine.
package conformance

import (
	"fmt"
	"regexp"

	"github.com/weft-cni/weft/test/cluster/state"
)

// focuses are the named sets of specs: regular expressions over a spec's full name.
var focuses = map[string]string{
	"services": `\[sig-network\] (Services|DNS|Networking Granular Checks: (Services|Pods)|EndpointSlice|HostPort|\[Feature:IPv6DualStack\])`,
	"netpol":   `\[sig-network\] Netpol`,
}

// Focus returns the expression of a named set, or the text itself if it is an expression.
func Focus(text string) (string, error) {
	if focus, ok := focuses[text]; ok {
		return focus, nil
	}
	if _, err := regexp.Compile(text); err != nil || text == "" {
		return "", fmt.Errorf("invalid focus %q: want services, netpol, ci or a regular expression over names of specs", text)
	}
	return text, nil
}

// Filter is the label filter of every run, whatever its focus: everything in the focus has to pass, except what needs
//
//   - SCTP (Feature:SCTPConnectivity), which the kernels of the machines that tests run on lack;
//   - other features that a cluster may be without: a cloud's load balancers, the Internet;
//   - two families, on a cluster of one;
//   - the cluster to itself, or many minutes (Serial, Disruptive, Slow).
//
// Specs for another provider, for example GCE, skip themselves.
func Filter(family state.IPFamily) string {
	features := "NetworkPolicy"
	if family == state.Dual {
		features += ", IPv6DualStack"
	}
	return "Feature: isSubsetOf {" + features + "} && !Serial && !Disruptive && !Slow"
}
