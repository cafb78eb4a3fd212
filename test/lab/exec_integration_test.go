//go:build integration

package lab_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

func TestExec(t *testing.T) {
	l := labtest.Up(t, "exec", "-f", labtest.Write(t, map[string]string{"f.yaml": deployment("web", 2, 80)}))
	pod := l.Pod("web-0")
	if got := l.Run("default/web-0", "hostname"); got != "web-0" {
		t.Errorf("host name in a pod: %q", got)
	}
	if got := strings.Fields(l.Run("web-0", "ls", "/sys/class/net")); !cmp.Equal(got, []string{"eth0", "lo"}) {
		t.Errorf("devices in a pod: %v", got)
	}
	if got := l.Run("web-0", "ip", "-o", "addr", "show", "eth0"); !strings.Contains(got, pod.IPs[0].String()) {
		t.Errorf("the pod's interface has no %s: %s", pod.IPs[0], got)
	}
	if got := l.Run("node/"+pod.Node, "weftctl", "status"); !strings.Contains(got, "default/web-0") {
		t.Errorf("weftctl status on the pod's node:\n%s", got)
	}
	if got := l.Run("node/node1", "ovs-ofctl", "--names", "dump-flows", "weft"); !strings.Contains(got,
		"table=SpoofGuard") {
		t.Errorf("flows on a node:\n%s", got)
	}
	var exit *exec.ExitError
	if _, err := labtest.Run(l.Exec("web-0", "sh", "-c", "exit 7")); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit status of a command in a pod: %v, want 7", err)
	}
	for _, where := range []string{"unknown", "node/node9"} {
		if _, err := labtest.Run(l.Exec(where, "true")); err == nil || !strings.Contains(err.Error(), "has no") {
			t.Errorf("exec in %s: %v", where, err)
		}
	}
	wantKubectl(t, l, pod)
}

// wantKubectl: kubectl finds in the lab's API server what it finds in a cluster's, of the resources that the lab has.
func wantKubectl(t *testing.T, l *labtest.Lab, pod lab.PodStatus) {
	t.Helper()
	kubectl := func(args ...string) (string, error) {
		return labtest.Run(labtest.Command(t, append([]string{"--name", l.Name, "kubectl"}, args...)...))
	}
	for _, tc := range []struct{ args, want string }{
		{"get po -A", "web-0"}, {"get deploy", ""}, {"get no node2 -o jsonpath={.kind}", "Node"},
		{"describe pod web-0", "IP:  "}, {"get netpol,svc,endpointslices -o name", ""},
		{"api-resources --no-headers -o name", "clusternetworkpolicies.policy.networking.k8s.io"},
		{"get pods --field-selector=spec.nodeName=" + pod.Node + " -o name", "pod/web-0"},
	} {
		got, err := kubectl(strings.Fields(tc.args)...)
		if failed := err != nil; failed != (tc.args == "get deploy") || !strings.Contains(got, tc.want) {
			t.Errorf("kubectl %s: %v: %s, want %q", tc.args, err, got, tc.want)
		}
	}
	var exit *exec.ExitError
	if _, err := kubectl("get", "pod", "none"); !errors.As(err, &exit) || exit.ExitCode() != 1 ||
		!strings.Contains(err.Error(), "not found") {
		t.Errorf("a pod that is missing: %v", err)
	}
}
