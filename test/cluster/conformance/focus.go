// Package conformance says which of Kubernetes' own specs Weft has to pass, and reads what a run of them found.
//
// It holds no state; its functions may be called from any goroutine.
package conformance

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/weft-cni/weft/test/cluster/state"
)

// focuses are the named sets of specs: regular expressions over a spec's full name.
var focuses = map[string]string{
	"services": `\[sig-network\] (Services|DNS|Networking Granular Checks: (Services|Pods)|EndpointSlice|HostPort|\[Feature:IPv6DualStack\])`,
	"netpol":   `\[sig-network\] Netpol`,
	"ci":       `\[sig-network\] (` + strings.Join(ci, "|") + `)`,
}

// ci are the specs that judge most in a few minutes. The secondary family stands for the other one.
var ci = []string{
	`Services should (preserve source pod IP|allow pods to hairpin|be rejected when no endpoints)`,
	`Services should (be able to create a functioning NodePort|be able to update service type to NodePort)`,
	`Services should have session affinity (work|timeout work)`,
	`Services should serve (multiport endpoints|endpoints on same port and different protocols)`,
	`DNS should (provide DNS for services|support configurable pod resolv.conf)`,
	`DNS HostNetwork should resolve`,
	`EndpointSlice should support a Service with multiple endpoint IPs`,
	`HostPort`,
	`Networking Granular Checks: Services should (function for node-Service: udp|be able to handle large requests)`,
	`\[Feature:IPv6DualStack\] Granular Checks: .* (function for node-Service: udp|be able to handle large requests)`,
	// Policies are the costly ones: each spec dials between all pairs of nine pods several times.
	`Netpol NetworkPolicy .* should (support a 'default-deny-all' policy|enforce multiple, stacked policies|enforce except clause)`,
	`Netpol \[LinuxOnly\] NetworkPolicy between server and client using UDP should enforce policy based on Ports`,
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
