//go:build integration

package datapath

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// clusterFragmentPolicies say what fragmentPolicies say, to pods at the other end: the tier Admin of what is received,
// the tier Baseline of what is sent.
var clusterFragmentPolicies = fmt.Sprintf(`---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: ingress}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: walled}}}}
  ingress:
  - {action: Accept, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: %[1]d}}}, {tcp: {destinationPort: {number: %[1]d}}}]}
  - {action: Deny, from: [{namespaces: {}}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: egress}
spec:
  tier: Baseline
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: caged}}}}
  egress:
  - {action: Accept, to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: %[1]d}}}]}
  - {action: Deny, to: [{networks: [0.0.0.0/0, "::/0"]}]}
`, namedPort)

// ClusterNetworkPolicies decide about fragments and echoes of both families as about other packets, at the ends of one
// node and of two: what a rule accepts arrives whole, and nothing arrives of what one denies.
func TestClusterPolicyFragments(t *testing.T) {
	f := upFragmented(t, "cnpfrags", clusterFragmentPolicies)
	testenv.Eventually(t, 20*time.Second, func() error {
		for node, want := range map[string]string{"node1": "egress", "node2": "ingress"} {
			if !slices.ContainsFunc(f.policies(t, node), func(r report.Policy) bool { return r.Policy == want }) {
				return fmt.Errorf("the agent of %s does not have the ClusterNetworkPolicy %s", node, want)
			}
		}
		return nil
	})
	for _, v4 := range []bool{true, false} {
		sizes := []int{2000, 8000}
		t.Run(familyName(v4)+"/denied", func(t *testing.T) { f.denied(t, v4) })
		t.Run(familyName(v4)+"/large questions", func(t *testing.T) {
			f.parallel(t, v4, 3, func(r route) error { return r.ask(sizes, false) })
		})
		t.Run(familyName(v4)+"/echo", func(t *testing.T) { f.echo(t, sizes, v4) })
		t.Run(familyName(v4)+"/denied echo", func(t *testing.T) { f.deniedEcho(t, v4) })
	}
}

// deniedEcho: no echo of a pod comes back from one whose policy accepts ports alone, and none that such a pod sends.
func (f fragmented) deniedEcho(t *testing.T, v4 bool) {
	for from, targets := range map[string][]string{"client": {"walled-near", "walled-far"},
		"caged": {"open-near", "open-far"}} {
		var all []wire.Target
		for _, to := range targets {
			for _, size := range []int{100, 2000} {
				all = append(all, wire.Target{Name: to, Proto: wire.ICMP, Addr: f.pods[to].addr(v4), Size: size, Attempts: 1,
					Timeout: testenv.Patience(time.Second)})
			}
		}
		var reply wire.DialReply
		f.Ask(fragNS+"/"+from, wire.DialRequest{Targets: all}, &reply, "dial")
		if len(reply.Results) != len(all) {
			t.Fatalf("%d results of %d pings from %s", len(reply.Results), len(all), from)
		}
		for _, r := range reply.Results {
			if r.OK() {
				t.Errorf("ping with %d bytes from %s to %s, which no rule accepts: answered", r.Target.Size, from, r.Target.Name)
			}
		}
	}
}
