//go:build integration

package cni_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

func TestCheckNamesTheDamage(t *testing.T) {
	n := newNode(t, "10.20.0.0/24", "fd20::/64")
	list := n.conf("1.1.0", "")
	inPod := func(p *pod, fn func(eth0 netlink.Link) error) {
		t.Helper()
		check(t, p.netns.Do(func(ns.NetNS) error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return fn(eth0)
		}))
	}
	for _, tc := range []struct {
		name   string
		damage func(p *pod, att model.Attachment)
		want   string
	}{
		{"address removed", func(p *pod, _ model.Attachment) {
			inPod(p, func(l netlink.Link) error {
				addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
				if err != nil {
					return err
				}
				return netlink.AddrDel(l, &addrs[0])
			})
		}, "lacks address 10.20.0."},
		{"route removed", func(p *pod, _ model.Attachment) {
			inPod(p, func(netlink.Link) error {
				return netlink.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
					Gw: net.ParseIP("fd20::1")})
			})
		}, "lacks its default route via fd20::1"},
		{"pod link down", func(p *pod, _ model.Attachment) { inPod(p, netlink.LinkSetDown) }, "pod's link eth0 is down"},
		{"pod MAC changed", func(p *pod, _ model.Attachment) {
			inPod(p, func(l netlink.Link) error {
				return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 9})
			})
		}, "has MAC 02:00:00:00:00:09"},
		{"node link down", func(_ *pod, att model.Attachment) {
			check(t, n.db.RemovePort(n.ctx, att.HostIfName)) // or the agent raises the link again at once
			l, err := netlink.LinkByName(att.HostIfName)
			check(t, err)
			n.eventually("ovs-vswitchd has removed the port", func() bool {
				out, err := n.ovs.Run(n.ctx, "ovs-ofctl", "show", model.BridgeName)
				return err == nil && !strings.Contains(out, att.HostIfName)
			})
			check(t, netlink.LinkSetDown(l))
		}, "is down"},
		{"links gone", func(_ *pod, att model.Attachment) {
			l, err := netlink.LinkByName(att.HostIfName)
			check(t, err)
			check(t, netlink.LinkDel(l))
		}, "is missing; the pod's link eth0 is missing"},
		{"port gone", func(_ *pod, att model.Attachment) { check(t, n.db.RemovePort(n.ctx, att.HostIfName)) },
			"the bridge has no port web-"},
		{"flows gone", func(_ *pod, att model.Attachment) { check(t, n.flows.Detach(n.ctx, att.Key())) },
			"flows: not in the switch"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := n.pod("web")
			n.mustAdd(list, p)
			check(t, n.libcni.CheckNetworkList(n.ctx, list, p.rt))
			tc.damage(p, n.flows.present[model.AttachmentKey{ContainerID: p.rt.ContainerID, IfName: "eth0"}])
			wantCode(t, n.libcni.CheckNetworkList(n.ctx, list, p.rt), cni.ErrDamaged, tc.want)
			n.mustDel(list, p)
			n.wantNothing()
		})
	}
	p := n.pod("web")
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "socket": %q`, n.socket)
	env := []string{"CNI_CONTAINERID=" + p.rt.ContainerID, "CNI_IFNAME=eth0", "CNI_NETNS=" + p.rt.NetNS}
	_, err := n.run("CHECK", conf+`}`, env...)
	wantCode(t, err, types.ErrInvalidNetworkConfig, "prevResult")
	_, err = n.run("CHECK", conf+`, "prevResult": {"cniVersion": "1.0.0"}}`, env...)
	wantCode(t, err, types.ErrUnknownContainer, "not attached")
}

func TestGC(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.1.0", "")
	keep, forget := n.pod("keep"), n.pod("forget")
	n.mustAdd(list, keep)
	n.mustAdd(list, forget)
	kept := types.GCAttachment{ContainerID: keep.rt.ContainerID, IfName: "eth0"}

	// Without a list, no attachment is stale.
	_, err := n.run("GC",
		fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "socket": %q}`, n.socket))
	wantCode(t, err, types.ErrInvalidNetworkConfig, "cni.dev/valid-attachments")
	if len(n.attached()) != 2 {
		t.Errorf("a GC without a list left %v", n.attached())
	}
	// The runtime lost its cache, so only the plugin has the attachments.
	check(t, os.RemoveAll(n.dir+"/cache"))
	check(t, os.MkdirAll(n.dir+"/cache/results", 0o700))
	check(t, n.libcni.GCNetworkList(n.ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{kept}}))
	if got := n.attached(); len(got) != 1 || got[0].ContainerID != keep.rt.ContainerID || len(n.links()) != 1 ||
		len(n.flows.keys()) != 1 {
		t.Errorf("GC left %v, %v, %v", got, n.links(), n.flows.keys())
	}
	// An ADD that is running is not stale, whether the list has it or not.
	release := n.flows.block()
	for len(n.flows.entered) > 0 {
		<-n.flows.entered
	}
	added := make(chan error, 1)
	fresh := n.pod("fresh")
	go func() { _, err := n.add(list, fresh); added <- err }()
	<-n.flows.entered
	check(t, n.libcni.GCNetworkList(n.ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{kept}}))
	release()
	check(t, <-added)
	if len(n.attached()) != 2 {
		t.Errorf("after a GC during an ADD: %v", n.attached())
	}
	check(t, n.libcni.GCNetworkList(n.ctx, list, &libcni.GCArgs{}))
	n.wantNothing()
}

func TestPluginKilledDuringAdd(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	p := n.pod("web")
	release := n.flows.block()
	defer release()
	cmd := n.command("ADD",
		fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "socket": %q}`, n.socket),
		"CNI_CONTAINERID="+p.rt.ContainerID, "CNI_IFNAME=eth0", "CNI_NETNS="+p.rt.NetNS)
	check(t, cmd.Start())
	<-n.flows.entered
	n.eventually("the port is there", func() bool { return len(n.attached()) == 1 })
	check(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Error("the plugin was not killed")
	}
	n.eventually("everything is rolled back", func() bool {
		return len(n.attached())+len(n.links())+len(n.flows.keys()) == 0
	})
	// The server closes the pod's namespace only at the end of the request.
	check(t, n.stop())
}

func TestAgentStoppedDuringAdd(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.0.0", "")
	p := n.pod("web")
	release := n.flows.block()
	added := make(chan error, 1)
	go func() { _, err := n.add(list, p); added <- err }()
	<-n.flows.entered
	check(t, n.stop())
	wantCode(t, <-added, types.ErrTryAgainLater, "")
	n.wantNothing()
	release()
	n.start()
	n.mustAdd(list, p)
}

// TestAgentKilledDuringAdd kills a process that runs the server, at every step of an ADD at which it can be stopped.
func TestAgentKilledDuringAdd(t *testing.T) {
	for _, step := range []string{"before-port", "flows"} {
		t.Run(step, func(t *testing.T) {
			n := newNode(t, "10.20.0.0/24")
			list := n.conf("1.0.0", "")
			complete := n.pod("complete")
			n.mustAdd(list, complete)
			check(t, n.stop())
			agent := exec.Command("/proc/self/exe", "-test.run=^TestAgentProcess$")
			agent.Env = append(os.Environ(), "WEFT_CNI_TEST_AGENT="+step, "WEFT_CNI_TEST_DIR="+n.dir)
			agent.Stdout, agent.Stderr = os.Stderr, os.Stderr
			check(t, agent.Start())
			p := n.pod("broken")
			n.eventually("the other agent listens", n.listens)
			added := make(chan error, 1)
			go func() { _, err := n.add(list, p); added <- err }()
			ports := 1
			if step == "flows" {
				ports = 2
			}
			n.eventually("the ADD is half done", func() bool { return len(n.links()) == 2 && len(n.attached()) == ports })
			check(t, agent.Process.Signal(syscall.SIGKILL))
			_ = agent.Wait() // it was killed
			wantCode(t, <-added, types.ErrTryAgainLater, "does not answer")
			n.start()
			if len(n.kept) != 1 || n.kept[0].ContainerID != complete.rt.ContainerID || len(n.links()) != 1 ||
				len(n.attached()) != 1 {
				t.Errorf("kept %v, links %v, ports %v", n.kept, n.links(), n.attached())
			}
			check(t, n.libcni.CheckNetworkList(n.ctx, list, complete.rt))
			check(t, n.libcni.DelNetworkList(n.ctx, list, p.rt))
			// The address after that of the interrupted ADD, unless the agent was killed before it had recorded that.
			if ip := n.mustAdd(list, p).IPs[0].Address.IP.String(); ip != "10.20.0.4" &&
				(step != "before-port" || ip != "10.20.0.3") {
				t.Errorf("address %s", ip)
			}
			n.mustDel(list, p)
			n.mustDel(list, complete)
			n.wantNothing()
		})
	}
}

// stuckPorts blocks before it reaches the bridge.
type stuckPorts struct{ cni.Ports }

func (stuckPorts) AddPort(ctx context.Context, _ model.Attachment) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestAgentProcess is not a test: it is the agent that TestAgentKilledDuringAdd and TestChurn kill.
func TestAgentProcess(t *testing.T) {
	step := os.Getenv("WEFT_CNI_TEST_AGENT")
	switch step {
	case "":
		return
	case churnStep:
		runChurnAgent(t, os.Getenv("WEFT_CNI_TEST_DIR"))
		return
	}
	n := &node{t: t, ctx: t.Context(), dir: os.Getenv("WEFT_CNI_TEST_DIR"), flows: newFakeFlows()}
	n.socket = n.dir + "/s/cni.sock"
	n.connect()
	n.settings.PodCIDRs = prefixes("10.20.0.0/24")
	if step == "before-port" {
		n.startWith(stuckPorts{n.db})
	} else {
		n.flows.block()
		n.start()
	}
	<-t.Context().Done()
}

func TestRecoverWhatIsGone(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.0.0", "")
	complete, rebooted := n.pod("complete"), n.pod("rebooted")
	n.mustAdd(list, complete)
	n.mustAdd(list, rebooted)
	check(t, n.stop())
	for _, a := range n.attached() {
		if a.ContainerID == rebooted.rt.ContainerID {
			l, err := netlink.LinkByName(a.HostIfName)
			check(t, err)
			check(t, netlink.LinkDel(l))
		}
	}
	// A link of Weft's without a port, and a foreign link.
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "stray-1", Group: cni.GroupAttached},
		PeerName: "stray-1p"}))
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "foreign-1"}, PeerName: "foreign-1p"}))
	n.start()
	links := n.links()
	slices.Sort(links)
	if len(n.attached()) != 1 || len(n.kept) != 1 || len(links) != 3 || !strings.HasPrefix(links[0], "complete-") ||
		links[1] != "foreign-1" || links[2] != "foreign-1p" {
		t.Errorf("ports %v, links %v", n.attached(), links)
	}
	foreign, err := netlink.LinkByName("foreign-1")
	check(t, err)
	check(t, netlink.LinkDel(foreign))
	n.mustDel(list, rebooted)
	n.mustDel(list, complete)
	n.wantNothing()
}

// unreadable is a bridge whose ports have invalid records.
type unreadable struct{ *ovsdb.Client }

func (u unreadable) Attachments(ctx context.Context) ([]model.Attachment, []ovsdb.BadPort, error) {
	atts, bad, err := u.Client.Attachments(ctx)
	for _, a := range atts {
		bad = append(bad, ovsdb.BadPort{Name: a.HostIfName, Err: errors.New("damaged")})
	}
	return nil, bad, err
}

func TestRecoverRemovesUnreadablePorts(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list, p := n.conf("1.0.0", ""), n.pod("web")
	n.mustAdd(list, p)
	check(t, n.stop())
	n.loseCopies()
	n.startWith(unreadable{n.db})
	if len(n.kept) != 0 || len(n.attached()) != 0 || len(n.links()) != 1 {
		t.Errorf("kept %v, ports %v, links %v; want only the link, which holds the pod's address", n.kept, n.attached(),
			n.links())
	}
	n.mustDel(list, p)
	n.wantNothing()
}

// loseCopies removes the agent's copies of the attachments.
func (n *node) loseCopies() {
	n.t.Helper()
	check(n.t, os.RemoveAll(filepath.Join(filepath.Dir(n.socket), "attachments")))
}

// TestLostDatabase: OVS came back with an empty database while the agent was down, and the copies are lost, too. The
// pods cannot be connected again, but their addresses stay reserved until they are deleted.
func TestLostDatabase(t *testing.T) {
	n := newNode(t, "10.20.0.0/30", "fd20::/64") // one IPv4 address for pods
	list := n.conf("1.1.0", "")
	for _, end := range []string{"DEL", "namespace"} {
		p, q := n.pod("old"), n.pod("new")
		n.mustAdd(list, p)
		check(t, n.stop())
		n.loseCopies()
		n.vsctl("del-br", model.BridgeName)
		n.eventually("the bridge is recreated", func() bool {
			changed, err := n.db.EnsureBridge(n.ctx, bridge)
			return err == nil && len(changed) > 0
		})
		for range 2 { // starts of the agent
			n.start()
			if len(n.kept) != 0 || len(n.links()) != 1 {
				t.Errorf("kept %v, links %v", n.kept, n.links())
			}
			_, err := n.add(list, q)
			wantCode(t, err, cni.ErrPoolExhausted, "10.20.0.0/30")
			check(t, n.stop())
		}
		n.start()
		if end == "DEL" {
			n.mustDel(list, p)
		} else {
			link, err := netlink.LinkByName(n.links()[0])
			check(t, err)
			check(t, netlink.LinkDel(link))
		}
		if r := n.mustAdd(list, q); r.IPs[0].Address.IP.String() != "10.20.0.2" {
			t.Errorf("address %v after the %s of the old pod", r.IPs[0], end)
		}
		n.mustDel(list, q)
		n.wantNothing()
	}
}

func TestChainedPlugins(t *testing.T) {
	n := newNode(t, "10.20.0.0/24", "fd20::/64")
	text, err := cni.ConfList(n.socket)
	check(t, err)
	list := n.list(string(text))
	if list.CNIVersion != "1.1.0" {
		t.Errorf("libcni chose version %s", list.CNIVersion)
	}
	p := n.pod("web")
	p.rt.CapabilityArgs = map[string]any{
		"portMappings": []map[string]any{{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}},
		"bandwidth":    map[string]any{"ingressRate": 8000000, "ingressBurst": 8000000},
	}
	r := n.mustAdd(list, p)
	if len(r.IPs) != 2 || r.IPs[0].Address.String() != "10.20.0.2/24" {
		t.Errorf("result %+v", r)
	}
	rules := func() string {
		out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
		return string(out)
	}
	if got := rules(); !strings.Contains(got, "18080") || !strings.Contains(got, "10.20.0.2:80") {
		t.Errorf("portmap made no rule:\n%s", got)
	}
	check(t, n.libcni.GetStatusNetworkList(n.ctx, list))
	check(t, n.libcni.CheckNetworkList(n.ctx, list, p.rt))
	n.mustDel(list, p)
	if got := rules(); strings.Contains(got, "18080") {
		t.Errorf("portmap left its rule:\n%s", got)
	}
	n.wantNothing()
}
