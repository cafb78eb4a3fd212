//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
)

// tunnelPorts are the switch ports of the tunnel types.
var tunnelPorts = map[string]string{string(model.Geneve): model.GenevePortName,
	string(model.VXLAN): model.VXLANPortName}

// The tunnel type of the running cluster changes, and changes back, through the ConfigMap alone: not one ping between
// the nodes is lost, and packets really leave through the other port.
func TestTunnelChange(t *testing.T) {
	pods, _ := meshPods(t)
	first, err := env.nodes[0].status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := string(model.VXLAN)
	if first.TunnelType == other {
		other = string(model.Geneve)
	}
	original := weftConfig(t)
	t.Cleanup(func() { writeWeftConfig(t, original) })

	wantTunnel(t, pods, first.TunnelType, other)
	traffic := pingBetweenNodes(t, pods)
	for _, change := range [][2]string{{other, first.TunnelType}, {first.TunnelType, other}} {
		to, from := change[0], change[1]
		start := time.Now()
		writeWeftConfig(t, withSetting(t, original, "tunnelType", to))
		must(t, 3*time.Minute, func(ctx context.Context) error {
			for _, n := range env.nodes {
				s, err := n.status(ctx)
				if err != nil {
					return err
				}
				if s.TunnelType != to {
					return fmt.Errorf("%s still sends %s, not %s", n.name, s.TunnelType, to)
				}
			}
			return nil
		})
		t.Logf("%s → %s on all nodes after %.1f s", from, to, time.Since(start).Seconds())
		wantSentThrough(t, to, from)
	}
	traffic.wantNoLoss(t)
}

// wantTunnel checks, under pings of its own, which tunnel the nodes send through.
func wantTunnel(t *testing.T, pods []*pod, used, unused string) {
	t.Helper()
	traffic := pingBetweenNodes(t, pods)
	wantSentThrough(t, used, unused)
	traffic.wantNoLoss(t)
}

// wantSentThrough waits for a window of time in which every node sends and receives through one tunnel and not through
// the other. The switch updates its counters once or twice a second, hence the waiting.
func wantSentThrough(t *testing.T, used, unused string) {
	t.Helper()
	const window, least = 2 * time.Second, 20
	must(t, 30*time.Second, func(ctx context.Context) error {
		type counters struct{ used, unused, received uint64 }
		read := func() (map[string]counters, error) {
			all := map[string]counters{}
			for _, n := range env.nodes {
				ports, err := n.ports(ctx)
				if err != nil {
					return nil, err
				}
				u, o := ports[tunnelPorts[used]], ports[tunnelPorts[unused]]
				all[n.name] = counters{u.TxPackets, o.TxPackets, u.RxPackets}
			}
			return all, nil
		}
		before, err := read()
		if err != nil {
			return err
		}
		select {
		case <-time.After(window):
		case <-ctx.Done():
			return ctx.Err()
		}
		after, err := read()
		if err != nil {
			return err
		}
		for name, b := range before {
			a := after[name]
			if a.used-b.used < least || a.received-b.received < least || a.unused != b.unused {
				return fmt.Errorf(
					"%s within %s: sent %d and received %d through %s, want at least %d; sent %d through %s, want none",
					name, window, a.used-b.used, a.received-b.received, used, least, a.unused-b.unused, unused)
			}
		}
		return nil
	})
}

// weftConfig reads the agents' configuration file from the ConfigMap.
func weftConfig(t *testing.T) string {
	t.Helper()
	cm, err := env.client.CoreV1().ConfigMaps(weftNamespace).Get(t.Context(), weftConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cm.Data[configKey]
}

// writeWeftConfig changes the configuration in the ConfigMap. A kubelet looks at a mounted ConfigMap about once a
// minute, and whenever the pod changes: an annotation makes it look now.
func writeWeftConfig(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(30*time.Second))
	defer cancel()
	patch, err := json.Marshal(corev1.ConfigMap{Data: map[string]string{configKey: text}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := env.client.CoreV1().ConfigMaps(weftNamespace).Patch(ctx, weftConfigMap, types.StrategicMergePatchType,
		patch, metav1.PatchOptions{}); err != nil {
		t.Fatalf("change ConfigMap %s: %v", weftConfigMap, err)
	}
	nudge := fmt.Appendf(nil, `{"metadata":{"annotations":{"weft.test/nudge":%q}}}`, time.Now().Format(time.RFC3339Nano))
	for _, n := range env.nodes {
		agent, err := n.agent(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := env.client.CoreV1().Pods(agent.Namespace).Patch(ctx, agent.Name, types.MergePatchType, nudge,
			metav1.PatchOptions{}); err != nil {
			t.Fatalf("annotate agent %s: %v", agent.Name, err)
		}
	}
}

// withSetting is a configuration file with one setting changed.
func withSetting(t *testing.T, text, key string, value any) string {
	t.Helper()
	settings := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &settings); err != nil {
		t.Fatalf("read %s: %v", configKey, err)
	}
	if settings == nil { // a file of comments
		settings = map[string]any{}
	}
	settings[key] = value
	changed, err := yaml.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	return string(changed)
}
