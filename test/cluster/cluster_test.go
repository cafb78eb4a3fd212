package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

func plan(family state.IPFamily) state.Plan { return state.Plan{Name: "weft", Family: family} }

func demand(t *testing.T, args []string, want ...string) {
	t.Helper()
	for _, arg := range want {
		if !slices.Contains(args, arg) {
			t.Errorf("%s is missing from:\n%s", arg, strings.Join(args, "\n"))
		}
	}
}

func TestArguments(t *testing.T) {
	dir := paths("/s")
	for family, want := range map[state.IPFamily]struct{ cidrs, services, mask []string }{
		state.IPv4: {[]string{"--cluster-cidr=10.244.0.0/16"}, []string{"--service-cluster-ip-range=10.96.0.0/16"},
			[]string{"--node-cidr-mask-size=24"}},
		state.IPv6: {[]string{"--cluster-cidr=fd10:244::/56"}, []string{"--service-cluster-ip-range=fd10:96::/112"},
			[]string{"--node-cidr-mask-size=64"}},
		state.Dual: {[]string{"--cluster-cidr=10.244.0.0/16,fd10:244::/56"},
			[]string{"--service-cluster-ip-range=10.96.0.0/16,fd10:96::/112"},
			[]string{"--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64"}},
	} {
		args := controllerManagerArgs(dir, plan(family))
		demand(t, args, slices.Concat(want.cidrs, want.services, want.mask)...)
		masks := 0
		for _, arg := range args {
			if strings.HasPrefix(arg, "--node-cidr-mask-size") {
				masks++
			}
		}
		if masks != len(want.mask) {
			t.Errorf("%s: %d mask flags; kube-controller-manager refuses those of the other kind of cluster", family, masks)
		}
		demand(t, apiServerArgs(dir, plan(family)), want.services...)
	}
	demand(t, apiServerArgs(dir, plan(state.IPv6)), "--advertise-address=fd57:6566:74::1",
		"--etcd-servers=https://[fd57:6566:74::1]:2379",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--kubelet-preferred-address-types=InternalIP")
	demand(t, etcdArgs(dir, plan(state.IPv6)), "--listen-client-urls=https://[fd57:6566:74::1]:2379", "--client-cert-auth")
	n := state.Node{Name: "node2", Addrs: state.Addrs(plan(state.Dual).Node(1))}
	demand(t, kubeletArgs(dir, n, 1), "--node-ip=172.30.0.12,fd57:6566:74::c",
		"--node-labels=topology.kubernetes.io/region=lab,topology.kubernetes.io/zone=zone-b")
}

func TestAPIServerNames(t *testing.T) {
	var got []string
	for _, addr := range apiServerNames(plan(state.Dual)).Addrs {
		got = append(got, addr.String())
	}
	want := []string{"172.30.0.1", "fd57:6566:74::1", "10.96.0.1", "fd10:96::1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses in the API server's certificate (-want +got):\n%s", diff)
	}
}

func TestKubeletConfig(t *testing.T) {
	n := state.Node{Name: "node1", Sandbox: sandbox.Node{Group: "weft", Name: "node1"}}
	for family, listen := range map[state.IPFamily]string{state.IPv4: "0.0.0.0", state.IPv6: "::", state.Dual: "::"} {
		config := kubeletConfig("/s", plan(family), n)
		if config["address"] != listen || config["cgroupRoot"] != "/weft-lab/weft/node1" || config["failSwapOn"] != false {
			t.Errorf("%s: %v", family, config)
		}
		if reserved, ok := config["enforceNodeAllocatable"].([]string); !ok || reserved == nil {
			t.Errorf("%s: enforceNodeAllocatable must be an empty list, which is not its default", family)
		}
	}
}

func TestHostsFile(t *testing.T) {
	want := "127.0.0.1 localhost\n::1 localhost\n172.30.0.12 node2\nfd57:6566:74::c node2\n"
	if got := hostsFile(plan(state.Dual), 1); got != want {
		t.Errorf("hosts = %q, want %q", got, want)
	}
}

func TestWriteCredentials(t *testing.T) {
	dir := paths(t.TempDir())
	if err := os.Mkdir(dir.pki(), 0o755); err != nil {
		t.Fatal(err)
	}
	nodes := []state.Node{{Name: "node1", Addrs: state.Addrs(plan(state.IPv4).Node(0))}}
	if err := writeCredentials(dir, plan(state.IPv4), nodes); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"admin", "controller-manager", "scheduler", "node1"} {
		data, err := os.ReadFile(dir.kubeconfig(user))
		if err != nil {
			t.Fatal(err)
		}
		var config struct {
			Clusters []struct{ Cluster map[string]string }
			Users    []struct{ User map[string]string }
		}
		if err := yaml.Unmarshal(data, &config); err != nil {
			t.Fatal(err)
		}
		if server := config.Clusters[0].Cluster["server"]; server != "https://172.30.0.1:6443" {
			t.Errorf("%s's server is %q", user, server)
		}
		for _, file := range []string{config.Clusters[0].Cluster["certificate-authority"],
			config.Users[0].User["client-certificate"], config.Users[0].User["client-key"]} {
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s's kubeconfig: %v", user, err)
			}
		}
	}
	if _, err := os.ReadFile(dir.join("kubeconfig")); err != nil {
		t.Error(err)
	}
}

func TestMissingPackages(t *testing.T) {
	have := map[string]bool{}
	for _, n := range needed {
		have[n.program] = n.debian != "openvswitch-switch" && n.program != "ctr"
	}
	got := missingPackages(func(program string) (string, error) {
		if have[program] {
			return "/bin/" + program, nil
		}
		return "", exec.ErrNotFound
	}, slices.Concat(needed, tested)...)
	if diff := cmp.Diff([]string{"openvswitch-switch", "containerd", "dnsmasq-base", "chromium"}, got); diff != "" {
		t.Errorf("missing packages (-want +got):\n%s", diff)
	}
}

func TestForbidServices(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy-rc.d")
	for _, leftover := range []bool{false, true} { // of an installation that was killed
		if leftover {
			if err := os.WriteFile(path, []byte(policyText), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		restore, err := forbidServices(path)
		if err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := exec.Command(path).Run(); !errors.As(err, &exit) || exit.ExitCode() != 101 {
			t.Errorf("the policy answers %v, want exit status 101: forbidden", err)
		}
		if err := restore(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the policy is still there: %v", err)
		}
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	restore, err := forbidServices(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "#!/bin/sh\n" {
		t.Errorf("the machine's own policy became %q, %v", data, err)
	}
}

func TestComponents(t *testing.T) {
	hashes := map[string]bool{}
	for _, c := range []component{kubernetes, coreDNS, upstreamTests} {
		version, hash, err := c.read(filepath.Join("..", c.dir))
		if err != nil || !strings.HasPrefix(version, "v1.") || len(hash) != 16 || hashes[hash] {
			t.Errorf("%s: version %q, hash %q, %v", c.what, version, hash, err)
		}
		hashes[hash] = true
	}
	flags := strings.Join(kubernetesFlags("v1.34.4"), " ")
	for _, want := range []string{"gitVersion=v1.34.4", "gitMajor=1 ", "gitMinor=34"} {
		if !strings.Contains(flags+" ", want) {
			t.Errorf("build flags %q lack %s", flags, want)
		}
	}
	module := t.TempDir()
	if err := os.Mkdir(filepath.Join(module, "e2e"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, change := range []struct{ file, text string }{
		{"go.mod", "require (\n\tk8s.io/kubernetes v1.34.4 // indirect\n)\n"}, {"go.mod",
			"require k8s.io/kubernetes v1.34.4\n"}, {"go.sum", "other\n"}, {"e2e/e2e_test.go", "package e2e\n"},
	} {
		if err := os.WriteFile(filepath.Join(module, change.file), []byte(change.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if change.file == "go.mod" {
			if err := os.WriteFile(filepath.Join(module, "go.sum"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		version, hash, err := upstreamTests.read(module)
		if err != nil || version != "v1.34.4" || hashes[hash] {
			t.Errorf("after a change of %s: version %q, hash %q, %v; want a hash of its own", change.file, version, hash, err)
		}
		hashes[hash] = true
	}
}

func TestRenderDNS(t *testing.T) {
	for family, want := range map[state.IPFamily]struct {
		ips    []string
		policy corev1.IPFamilyPolicy
	}{
		state.IPv4: {[]string{"10.96.0.10"}, corev1.IPFamilyPolicySingleStack},
		state.IPv6: {[]string{"fd10:96::a"}, corev1.IPFamilyPolicySingleStack},
		state.Dual: {[]string{"10.96.0.10", "fd10:96::a"}, corev1.IPFamilyPolicyRequireDualStack},
	} {
		text, err := renderDNS(plan(family))
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[string]int{}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			var object struct {
				Kind string
				Spec json.RawMessage
			}
			if err := yaml.Unmarshal([]byte(document), &object); err != nil {
				t.Fatalf("%s: %v in\n%s", family, err, document)
			}
			kinds[object.Kind]++
			if object.Kind != "Service" {
				continue
			}
			var s corev1.ServiceSpec
			if err := json.Unmarshal(object.Spec, &s); err != nil {
				t.Fatal(err)
			}
			if s.ClusterIP != want.ips[0] || !slices.Equal(s.ClusterIPs, want.ips) || *s.IPFamilyPolicy != want.policy {
				t.Errorf("%s: cluster IPs %s and %q, %s; want %q, %s", family, s.ClusterIP, s.ClusterIPs, *s.IPFamilyPolicy,
					want.ips, want.policy)
			}
		}
		if want := map[string]int{"ServiceAccount": 1, "ClusterRole": 1, "ClusterRoleBinding": 1, "ConfigMap": 1,
			"Service": 1, "Deployment": 1}; !maps.Equal(kinds, want) {
			t.Errorf("%s: objects %v, want %v", family, kinds, want)
		}
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out, begun: time.Now()}
	if err := p.step("first", func(detail func(string)) error { detail("2 done"); return nil }); err != nil {
		t.Error(err)
	}
	failure := errors.New("no")
	if err := p.step("second", func(func(string)) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("step returned %v, want what the function returned", err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "✓ first: 2 done") ||
		!strings.Contains(lines[1], "✗ second failed") {
		t.Errorf("printed:\n%s", out.String())
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("colours outside a terminal: %q", out.String())
	}
}

func TestFindCrash(t *testing.T) {
	pod := func(container string, restarts int, waiting string) string {
		return fmt.Sprintf(
			`{"items":[{"metadata":{"name":"p"},"status":{%q:[{"name":"c","restartCount":%d,"state":{"waiting":{"reason":%q}}}]}}]}`, container, restarts, waiting)
	}
	for _, c := range []struct {
		pods  string
		crash bool
	}{
		{pod("containerStatuses", 3, "CrashLoopBackOff"), true},
		{pod("initContainerStatuses", 4, "CrashLoopBackOff"), true},
		{pod("initContainerStatuses", 0, "ImagePullBackOff"), true},
		{pod("containerStatuses", 2, "CrashLoopBackOff"), false},
		{pod("containerStatuses", 3, "ContainerCreating"), false},
		{`{"items":[]}`, false},
	} {
		if err := findCrash([]byte(c.pods)); errors.Is(err, testenv.ErrHopeless) != c.crash || (err != nil) != c.crash {
			t.Errorf("findCrash(%s) = %v; want a crash: %t", c.pods, err, c.crash)
		}
	}
}

func TestWaitReadyNoticesTheEnd(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, []byte("cannot bind\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	close(exited)
	begun := time.Now()
	err := waitReady(t.Context(), sandbox.Running{Exited: exited}, "etcd", log, func(context.Context) error {
		return errors.New("not yet")
	})
	if err == nil || !strings.Contains(err.Error(), "it ended") || !strings.Contains(err.Error(), "cannot bind") ||
		!strings.Contains(err.Error(), log) {
		t.Errorf("waitReady: %v; want that it ended, the log's name and its end", err)
	}
	if time.Since(begun) > readyTimeout/2 {
		t.Error("waited for a program that had ended")
	}
}

func TestWhere(t *testing.T) {
	w := where{dir: t.TempDir(), name: "mine"}
	if err := w.resolve(); err != nil || w.group != "mine" {
		t.Errorf("a new cluster: %v", err)
	}
	if err := (state.Cluster{Plan: state.Plan{Name: "yours"}, Dir: w.dir}).Save(); err != nil {
		t.Fatal(err)
	}
	if err := w.resolve(); err == nil || !strings.Contains(err.Error(), `cluster "yours"`) ||
		!strings.Contains(err.Error(), "NAME=yours") {
		t.Errorf("another cluster's state directory: %v", err)
	}
	// The record is not needed to remove a cluster, so a broken one must not be in the way.
	if err := os.WriteFile(filepath.Join(w.dir, "state.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := w.resolve(); err != nil {
		t.Errorf("a broken record: %v", err)
	}
	if _, err := w.load(); err == nil || !strings.Contains(err.Error(), "state.json") {
		t.Errorf("loading a broken record: %v", err)
	}
}

func TestProportionalSize(t *testing.T) {
	if got := proportionalSize(
		[]byte("00400000-7ff rollup\nRss:   900 kB\nPss:                 123 kB\nPss_Dirty: 5 kB\n")); got != 123<<10 {
		t.Errorf("proportionalSize = %d, want 123 KiB", got)
	}
}

func TestExecEnv(t *testing.T) {
	env := execEnv([]string{"PATH=/old", "HOME=/root"}, state.Cluster{Dir: "/s"})
	demand(t, env, "HOME=/root", "KUBECONFIG=/s/kubeconfig", "CONTAINERD_NAMESPACE=k8s.io")
	if path := env[slices.IndexFunc(env, func(v string) bool {
		return strings.HasPrefix(v, "PATH=")
	})]; !strings.HasPrefix(path, "PATH=/s/bin:") || slices.Contains(env, "PATH=/old") {
		t.Errorf("environment %q; want one PATH that begins with the cluster's programs", env)
	}
}
