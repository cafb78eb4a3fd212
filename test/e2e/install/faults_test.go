//go:build e2e

package install

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// fault is something that goes wrong, and what names it.
type fault struct {
	name string
	// node is a command on the first node, and cluster one with kubectl; undo are those that end it.
	node, undoNode, cluster, undo string
	// ask is the command that names the fault, by these words in one line.
	ask   string
	names []string
}

// away is a patch that keeps a DaemonSet from the first node, or, with null, from none.
const away = `{"spec":{"template":{"spec":{"affinity":%s}}}}`

func (w *world) seeded() []fault {
	first := w.record.Nodes[0].Name
	affinity := fmt.Sprintf(`{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[`+
		`{"matchFields":[{"key":"metadata.name","operator":"NotIn","values":[%q]}]}]}}}`, first)
	patch := func(namespace, name, affinity string) string {
		return fmt.Sprintf("kubectl -n %s patch daemonset %s --type=merge -p '%s'", namespace, name, fmt.Sprintf(away, affinity))
	}
	const policy = `kubectl apply -f - <<'EOF'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: path}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}
EOF`
	return []fault{
		{name: "a policy denies", cluster: policy, undo: "kubectl -n path delete networkpolicy closed",
			ask: "kubectl weft trace path/client0 path/server1:7000", names: []string{"path/closed"}},
		{name: "a policy drops packets", cluster: policy + "\nkubectl -n path exec client0 -- /probe ping --count 3 " +
			"$(kubectl -n path get pod server1 -o 'jsonpath={.status.podIP}')", undo: "kubectl -n path delete networkpolicy closed",
			ask: "kubectl weft drops", names: []string{"policy/path/closed"}},
		{name: "a Service without endpoints", ask: "kubectl weft trace path/client0 service/path/empty:7000",
			names: []string{"endpoint"}},
		{name: "another plugin's file", node: "echo '{\"cniVersion\":\"1.0.0\",\"name\":\"other\",\"plugins\":[{\"type\":\"bridge\"}]}' " +
			">/etc/cni/net.d/00-other.conflist",
			undoNode: "rm /etc/cni/net.d/00-other.conflist", ask: "kubectl weft status", names: []string{first, "00-other.conflist"}},
		{name: "a firewall drops forwarded packets", node: "nft add table ip seeded; " +
			"nft add chain ip seeded forward '{ type filter hook forward priority 0; policy drop; }'",
			undoNode: "nft delete table ip seeded", ask: "kubectl weft status", names: []string{first, "forward"}},
		{name: "kube-proxy's rules", node: "nft add table ip kube-proxy; nft add chain ip kube-proxy services",
			undoNode: "nft delete table ip kube-proxy", ask: "kubectl weft status", names: []string{first, "kube-proxy"}},
		{name: "a setting that is wrong", cluster: "kubectl -n weft-system get configmap weft-config -o yaml >saved.yaml\n" +
			"sed 's/datapath: netdev/datapath: nettdev/' saved.yaml | kubectl apply -f -\n" +
			"kubectl -n weft-system annotate pods --all --overwrite weft.test/nudge=$(date +%s%N)",
			undo: "sed -i '/resourceVersion:/d' saved.yaml; kubectl apply -f saved.yaml\n" +
				"kubectl -n weft-system annotate pods --all --overwrite weft.test/nudge=$(date +%s%N)",
			ask: "kubectl weft status", names: []string{"nettdev"}},
		{name: "a node without Open vSwitch", cluster: patch("weft-openvswitch", "weft-openvswitch", affinity),
			undo: patch("weft-openvswitch", "weft-openvswitch", "null") +
				"\nkubectl -n weft-openvswitch rollout status daemonset/weft-openvswitch --timeout=3m",
			ask: "kubectl weft status", names: []string{first, "OVSDB"}},
		{name: "a node without an agent", cluster: patch("weft-system", "weft-agent", affinity),
			undo: patch("weft-system", "weft-agent", "null") +
				"\nkubectl -n weft-system rollout status daemonset/weft-agent --timeout=3m",
			ask: "kubectl weft status", names: []string{first, "no pod of weft-agent"}},
	}
}

// faults: each is named, and when all have ended every node is well.
func (w *world) faults(t *testing.T) {
	w.deployPods(t)
	for _, f := range w.seeded() {
		t.Run(f.name, func(t *testing.T) {
			w.on(t, f.node, f.cluster)
			var out string
			if err := testenv.Poll(t.Context(), 90*time.Second, func(ctx context.Context) error {
				out, _ = w.shell(ctx, w.older, f.ask) // its exit code says that there is a problem
				for line := range strings.Lines(out) {
					if containsAll(line, f.names) {
						return nil
					}
				}
				return fmt.Errorf("%s does not name %q:\n%s", f.ask, f.names, out)
			}); err != nil {
				t.Error(err)
			}
			t.Log(out)
			w.on(t, f.undoNode, f.undo)
		})
	}
	w.must(t, w.older, "kubectl weft status --wait 3m")
}

func containsAll(text string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

// on runs a command on the first node and one with kubectl; either may be missing.
func (w *world) on(t *testing.T, node, cluster string) {
	t.Helper()
	if node != "" {
		if _, err := w.record.Nodes[0].Sandbox.Run(t.Context(), "sh", "-ec", node); err != nil {
			t.Fatal(err)
		}
	}
	if cluster != "" {
		w.must(t, w.older, cluster)
	}
}
