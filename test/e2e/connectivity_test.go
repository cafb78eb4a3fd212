//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/connectivity"
	"github.com/weft-cni/weft/internal/preflight"
	"github.com/weft-cni/weft/internal/testing/testenv"
)

// weftctlOutside runs a command for the cluster as a user does, decodes what it prints, and returns its exit code.
func weftctlOutside(t *testing.T, within time.Duration, into any, args ...string) int {
	t.Helper()
	root, err := testenv.Repository()
	if err != nil {
		t.Fatal(err)
	}
	program, err := testenv.Program(t.Context(), root, "./cmd/weftctl", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience(within))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append(args, "--output=json", "--kubeconfig="+env.record.Kubeconfig())...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(env.record.Kubectl())+":"+os.Getenv("PATH"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	t.Logf("%s", errs.String())
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		t.Fatalf("exit code %d, %v: %s", cmd.ProcessState.ExitCode(), err, out.String())
	}
	return cmd.ProcessState.ExitCode()
}

// connectivityTest runs the test, with the host outside.
func connectivityTest(t *testing.T, within time.Duration, args ...string) (r connectivity.Report, code int) {
	t.Helper()
	outside := netip.AddrPortFrom(env.record.Outside.Addrs[0], echoPort)
	code = weftctlOutside(t, within, &r, append([]string{"connectivity", "test", "--outside=" + outside.String()}, args...)...)
	return r, code
}

func failedTests(r connectivity.Report) []string {
	var failed []string
	for _, one := range r.Tests {
		if len(one.Failures) > 0 {
			failed = append(failed, one.Test)
		}
	}
	return failed
}

// weftctl connectivity test passes on a cluster that is well, and leaves nothing; of faults that are seeded together,
// each is named by the test that is about it.
func TestConnectivity(t *testing.T) {
	dumpOnFailure(t)
	serveOutside(t)
	junit := filepath.Join(t.TempDir(), "junit.xml")
	r, code := connectivityTest(t, 2*time.Minute, "--junit="+junit)
	if code != cli.Well || !r.Passed() || len(r.Nodes) != len(env.nodes) {
		t.Fatalf("exit code %d: %+v", code, r)
	}
	if text, err := os.ReadFile(junit); err != nil || !strings.Contains(string(text), `failures="0"`) {
		t.Errorf("junit: %v\n%s", err, text)
	}
	list, err := env.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{LabelSelector: connectivity.Label})
	if err != nil || slices.ContainsFunc(list.Items, func(n corev1.Namespace) bool { return n.Name == r.Namespace }) {
		t.Errorf("the namespace %s stays: %v", r.Namespace, err)
	}

	seed(t)
	r, code = connectivityTest(t, 4*time.Minute) // what fails is waited for
	want := []string{"pod-same-node", "pod-other-node", "largest-packet", "cluster-ip", "node-port", "host-port", "dns", "outside",
		"policy-denies"}
	if failed := failedTests(r); code != cli.Problem || !slices.Equal(failed, want) {
		t.Errorf("exit code %d, failed %q, want %q: %+v", code, failed, want, r.Tests)
	}
}

// seed adds a fault for each test to the switches of two nodes, as flows of another program, until the test ends. Those
// about pods concern the port that no Service leads to.
func seed(t *testing.T) {
	const cookie, forwarding, services, isolation = "0xfa17", 60, 40, 56
	primary, next := env.nodes[0], env.nodes[1]
	ip, src, dst, suffix := "ip", "nw_src", "nw_dst", ""
	if familyOf(primary.addrs[0]) == v6 {
		ip, src, dst, suffix = "ipv6", "ipv6_src", "ipv6_dst", "6"
	}
	tcp, udp := "tcp"+suffix, "udp"+suffix
	other := strconv.Itoa(connectivity.OtherPort)
	drop := func(table int, match string, args ...any) string {
		return fmt.Sprintf("cookie=%s,table=%d,priority=65000,%s,actions=drop", cookie, table, fmt.Sprintf(match, args...))
	}
	faults := []string{
		drop(forwarding, "reg0=1/0xf,%s,%s=%s,%s=%s,tp_dst=%s", tcp, src, primary.podCIDRs[0], dst, primary.podCIDRs[0], other),
		drop(forwarding, "reg0=2/0xf,%s,tp_dst=%s", tcp, other),
		drop(services, "%s,%s=%s,tp_dst=%d", udp, dst, serviceRange(t), connectivity.Port),
		drop(services, "%s,tp_dst=18999", tcp),
		drop(services, "%s,tp_dst=53", udp),
		drop(forwarding, "%s,%s=%s,tp_dst=%d", tcp, dst, env.record.Outside.Addrs[0], echoPort),
		fmt.Sprintf("cookie=%s,table=%d,priority=65000,%s,actions=goto_table:%d", cookie, isolation, ip, forwarding),
	}
	for _, port := range []string{"0x7500/0xff00", "0x7600/0xfe00", "0x7800/0xf800"} { // those of nodes
		faults = append(faults, drop(services, "%s,%s=%s,tp_dst=%s", tcp, dst, next.addrs[0], port))
	}
	add := func(n node, bridge string, flows ...string) {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(10*time.Second))
			defer cancel()
			if _, err := n.run(ctx, "ovs-ofctl", "-O", "OpenFlow15", "del-flows", bridge, "cookie="+cookie+"/-1"); err != nil {
				t.Error(err)
			}
		})
		for _, f := range flows {
			if _, err := n.run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "add-flow", bridge, f); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(primary, bridge, faults...)
	// An underlay that carries less than its interfaces say.
	add(next, "br-phy", "cookie="+cookie+",table=0,priority=65000,in_port=LOCAL,"+udp+
		",actions=check_pkt_larger(1400)->NXM_NX_REG0[0],resubmit(,1)",
		"cookie="+cookie+",table=1,priority=2,reg0=1/1,actions=drop", "cookie="+cookie+",table=1,priority=1,actions=NORMAL")
}

// serviceRange has the cluster IPs.
func serviceRange(t *testing.T) netip.Prefix {
	t.Helper()
	s, err := env.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ip, err := netip.ParseAddr(s.Spec.ClusterIP)
	if err != nil {
		t.Fatal(err)
	}
	bits := 112 // as test/cluster/state plans them
	if ip.Is4() {
		bits = 16
	}
	return netip.PrefixFrom(ip, bits).Masked()
}

// weftctl check, from a pod on each node, sees the nodes' Open vSwitch, and names the node with another plugin's file.
func TestCheck(t *testing.T) {
	n := env.nodes[1]
	const file = "/etc/cni/net.d/99-other.conflist" // after Weft's, so that it is not used
	if _, err := n.run(t.Context(), "touch", file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(10*time.Second))
		defer cancel()
		if _, err := n.run(ctx, "rm", "-f", file); err != nil {
			t.Error(err)
		}
	})
	var list []preflight.Finding
	if code := weftctlOutside(t, time.Minute, &list, "check", "--datapath=netdev"); code != cli.Problem {
		t.Errorf("exit code %d: %+v", code, list)
	}
	seen := map[string]int{}
	for _, f := range list {
		seen[f.Check]++
		other := f.Check == "other CNI plugins" && f.Node == n.name
		// Weft runs, and has its ports.
		if other != (f.Do != "") && !strings.HasPrefix(f.Check, "port of ") || other && !strings.Contains(f.Saw, "99-other.conflist") {
			t.Errorf("%+v", f)
		}
	}
	for check, want := range map[string]int{"Kubernetes": 1, "kube-proxy": 1, "API server": 1, "pod CIDRs": len(env.nodes),
		"Open vSwitch": len(env.nodes), "kernel modules": len(env.nodes), "other CNI plugins": len(env.nodes) + 1, "forwarded packets": len(env.nodes),
		"kube-proxy's rules": len(env.nodes), "IPv6 router advertisements": len(env.nodes)} {
		if seen[check] != want {
			t.Errorf("%d lines about %s, want %d: %+v", seen[check], check, want, list)
		}
	}
}
