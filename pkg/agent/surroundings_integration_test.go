//go:build integration

package agent

import (
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// TestDroppedForwardingIsNamed: another program's FORWARD chain whose policy is drop is named everywhere, like the
// causes of TestCausesAreNamed, and does not fail the part that keeps the host's network.
func TestDroppedForwardingIsNamed(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	out, err := exec.Command("sh", "-ec", `ip link add eth0 type veth peer name out0; ip link set out0 up; ip link set eth0 up
ip addr add 172.30.0.1/24 dev eth0; ip link add weft0 type veth peer name switch0
nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'`).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	nft, err := host.NFTables()
	if err != nil {
		t.Fatal(err)
	}
	a, log := startingAgent(t, "http://127.0.0.1:1")
	a.host = host.New(nft, "/proc/sys", a.log)
	a.loop.Submit(state.SetNode{Node: model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}})
	viewed(t, a.loop)
	if err := a.syncHost(t.Context()); err != nil {
		t.Error(err)
	}
	_, readyz := ask(a, "/readyz")
	for where, text := range map[string]string{
		"log": log.String(), "/readyz": readyz, "termination message": strings.Join(a.lastWords(), "\n"),
		"status": strings.Join(reporter{a}.Status(t.Context()).Problems, "\n"),
	} {
		if !strings.Contains(text, "nftables chain ip filter FORWARD drops forwarded packets by policy") {
			t.Errorf("%s: %q", where, text)
		}
	}
}
