//go:build integration

package agent

import (
	"log/slog"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// TestSyncHostBesideBadNodes: Node objects that claim what is not theirs are reported by name, and change nothing:
// neither the node's own routes nor whether syncHost succeeds, on which the agent's start waits.
func TestSyncHostBesideBadNodes(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	run := func(command string) string {
		t.Helper()
		out, err := exec.Command("sh", "-ec", command).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		return string(out)
	}
	run(`ip link add eth0 type veth peer name out0; ip link set out0 up; ip link set eth0 up
ip addr add 172.30.0.1/24 dev eth0; ip route add default via 172.30.0.254; ip route add 10.244.7.0/24 via 172.30.0.254
ip link add weft0 type veth peer name switch0`)
	foreign := run("ip route show")

	nft, err := host.NFTables()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	a := &Agent{
		log: log, cfg: config.Default(), problems: map[string]string{}, host: host.New(nft, "/proc/sys", log),
		loop: heldLoop(t),
	}
	if a.kube, err = kube.NewWatcher(fakekube.New(), "n1", a.loop.Submit, log); err != nil {
		t.Fatal(err)
	}
	set := func(name, addr, cidr string) {
		a.loop.Submit(state.SetNode{Node: model.Node{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}})
	}
	set("n1", "172.30.0.1", "10.244.1.0/24")
	set("n2", "172.30.0.2", "10.244.2.0/24")
	set("everything", "172.30.0.3", "0.0.0.0/0")
	set("underlay", "172.30.0.4", "172.30.0.0/24")
	set("zoo", "172.30.0.5", "10.244.2.0/25")
	set("routed", "172.30.0.6", "10.244.7.0/24")
	viewed(t, a.loop)
	if err := a.syncHost(t.Context()); err != nil {
		t.Errorf("syncHost fails for other nodes' sake: %v", err)
	}
	problem := a.problems[podCIDRProblem]
	for _, want := range []string{
		"node everything: pod CIDR 0.0.0.0/0 is not used", "node underlay: pod CIDR 172.30.0.0/24 is not used",
		"node zoo: pod CIDR 10.244.2.0/25 is not used", "add route to 10.244.7.0/24",
	} {
		if !strings.Contains(problem, want) {
			t.Errorf("the problem %q lacks %q", problem, want)
		}
	}
	routes := run("ip route show")
	for _, want := range append(strings.Split(strings.TrimSpace(foreign), "\n"), "10.244.1.0/24 dev weft0 ",
		"10.244.2.0/24 via 10.244.2.1 dev weft0 ") {
		if !strings.Contains(routes, want) {
			t.Errorf("no route %q:\n%s", want, routes)
		}
	}
	if n := strings.Count(routes, "proto 87"); n != 2+4 { // and four to addresses of the switch
		t.Errorf("%d routes of ours, want 6:\n%s", n, routes)
	}
	if rules := run("nft list table inet weft"); !strings.Contains(rules,
		"elements = { 10.244.1.0/24, 10.244.2.0/24,\n\t\t\t     10.244.7.0/24 }") {
		t.Errorf("pods' ranges:\n%s", rules)
	}

	for _, name := range []string{"everything", "underlay", "zoo", "routed"} {
		a.loop.Submit(state.DeleteNode{Name: name})
	}
	viewed(t, a.loop)
	if err := a.syncHost(t.Context()); err != nil || len(a.problems) > 0 {
		t.Errorf("when they are gone: %v, %v", err, a.problems)
	}
	if routes := run("ip route show"); !strings.Contains(routes, "default via 172.30.0.254") ||
		!strings.Contains(routes, "10.244.7.0/24 via 172.30.0.254") {
		t.Errorf("when they are gone, so are the node's own routes:\n%s", routes)
	}

	set("n1", "172.30.0.1", "172.30.0.0/16")
	viewed(t, a.loop)
	before := run("ip route show; ip addr show dev weft0")
	if err := a.syncHost(t.Context()); err != nil ||
		!strings.Contains(a.loop.View().SelfHeld, "pod CIDR 172.30.0.0/16 is not used") {
		t.Errorf("with a range of its own that cannot be: error %v, held %q", err, a.loop.View().SelfHeld)
	}
	if after := run("ip route show; ip addr show dev weft0"); after != before {
		t.Errorf("with a range of its own that cannot be the network changed from\n%sto\n%s", before, after)
	}
}
