//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

func wantWords(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s does not show %q:\n%s", what, word, text)
		}
	}
}

// weftctl speaks of Kubernetes objects and of tables by their names.
func TestWeftctl(t *testing.T) {
	pods, _ := meshPods(t)
	n, local, remote := env.nodes[0], pods[0], env.nodes[1]
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"status"}, []string{n.name, remote.name, env.namespace + "/" + local.name, local.addrs[0].String(),
			"DROPPED BECAUSE"}},
		{[]string{"flows"}, []string{"Classifier", "SpoofGuard", "Forwarding", env.namespace + "/" + local.name,
			remote.name}},
		{[]string{"flows", env.namespace + "/" + local.name}, []string{"Classifier", "SpoofGuard", "Forwarding",
			env.namespace + "/" + local.name, local.addrs[0].String()}},
		{[]string{"flows", remote.name}, []string{"SpoofGuard", "Forwarding", remote.name, remote.addrs[0].String()}},
	} {
		out, err := n.weftctl(t.Context(), c.args...)
		if err != nil {
			t.Error(err)
			continue
		}
		wantWords(t, "weftctl "+strings.Join(c.args, " "), out, c.words...)
	}
	one, err := n.weftctl(t.Context(), "flows", env.namespace+"/"+local.name)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(one, env.namespace+"/"+pods[1].name) || strings.Contains(one, model.GenevePortName) {
		t.Errorf("the flows of one pod name other objects:\n%s", one)
	}
	if out, err := n.weftctl(t.Context(), "flows", "no-such-namespace/no-such-pod"); err == nil {
		t.Errorf("weftctl flows of a pod that does not exist succeeds:\n%s", out)
	}
}
