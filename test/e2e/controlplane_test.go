//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// controlPlane is where the API server runs: beside the nodes, with routes to pods by way of their nodes.
type controlPlane struct{}

func (controlPlane) String() string { return state.ControlPlaneName }

func (controlPlane) dial(ctx context.Context, request wire.DialRequest) (wire.DialReply, error) {
	var reply wire.DialReply
	argv, err := env.record.ControlPlane.Enter()
	if err != nil {
		return reply, err
	}
	argv = append(argv, env.image.Binary, "dial")
	err = runProbe(exec.CommandContext(ctx, argv[0], argv[1:]...), state.ControlPlaneName, request, &reply)
	return reply, err
}

// The API server reaches pods of every node in every family, as it has to for webhooks, extension API servers and
// pods/proxy.
func TestControlPlaneReachesPods(t *testing.T) {
	pods, _ := meshPods(t)
	var targets []wire.Target
	for _, p := range pods {
		targets = append(targets, targetsOf(p)...)
	}
	reach(t, map[controlPlane][]wire.Target{{}: targets})
	for _, p := range pods {
		path := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:%d/proxy/healthz", env.namespace, p.name, webPort)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		answer, err := env.client.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(ctx)
		cancel()
		if err != nil || strings.TrimSpace(string(answer)) != "ok" {
			t.Errorf("GET %s: %q, %v; want the pod's answer", path, answer, err)
		}
	}
}
