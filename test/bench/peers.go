package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/bench/result"
	"github.com/weft-cni/weft/test/lab/datapath"
	"github.com/weft-cni/weft/test/lab/podns"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// The networks of the peers are alike: two nodes on an underlay of their own, and one segment that a tunnel between
// them makes of their bridges.
const (
	peerBridge  = "br-int"
	ovsRunDir   = "/run/openvswitch" // of each node, whose /run is its own
	ovsSchema   = "/usr/share/openvswitch/vswitch.ovsschema"
	ovsTimeout  = "--timeout=20"
	underlayMTU = 1500
	tunnelKey   = 7
)

// nodeAddr is the address of node 1 or 2 on the underlay, podAddrs those of a pod, which is in its node's third byte.
func nodeAddr(node int) netip.Addr { return netip.AddrFrom4([4]byte{172, 30, 0, byte(node)}) }

func podAddrs(node, number int) []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{10, 98, byte(node), byte(number)}),
		netip.MustParseAddr(fmt.Sprintf("fd98::%d:%d", node, number))}
}

// peer is a system whose nodes this program sets up itself.
type peer struct {
	system   string
	group    sandbox.Group
	datapath datapath.Datapath
	tunnel   string
	// flows are those of the bridge of an Open vSwitch; a peer without any has a bridge of Linux.
	flows []string
}

// stateless and stateful are the flows of the two peers with Open vSwitch. Neighbor discovery is not tracked.
var (
	stateless = []string{"actions=NORMAL"}
	stateful  = []string{
		"priority=1,actions=NORMAL",
		"priority=20,icmp6,icmp_type=135,actions=NORMAL", "priority=20,icmp6,icmp_type=136,actions=NORMAL",
		"priority=10,ip,actions=ct(table=1)", "priority=10,ipv6,actions=ct(table=1)",
		"table=1,priority=10,ct_state=+trk+new,ip,actions=ct(commit),NORMAL",
		"table=1,priority=10,ct_state=+trk+new,ipv6,actions=ct(commit),NORMAL",
		"table=1,priority=10,ct_state=+trk+est,actions=NORMAL", "table=1,priority=10,ct_state=+trk+rel,actions=NORMAL",
	}
)

// start brings the network up.
func (p peer) start(ctx context.Context) (n *network, err error) {
	if err := p.group.Destroy(ctx); err != nil { // what an interrupted run left
		return nil, err
	}
	dir, err := os.MkdirTemp("", "weft-bench-")
	if err != nil {
		return nil, err
	}
	var open []io.Closer
	down := func(ctx context.Context) error {
		return errors.Join(closeAll(open), p.group.Destroy(ctx), os.RemoveAll(dir))
	}
	n = &network{system: p.system, down: down}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", p.system, err), down(context.WithoutCancel(ctx)))
		}
	}()
	underlay, err := p.group.StartUnderlay(ctx, underlayMTU, nil)
	if err != nil {
		return nil, err
	}
	var nodes []sandbox.Node
	for number := 1; number <= 2; number++ {
		node, err := p.startNode(ctx, underlay, number, dir)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, node)
		if p.flows != nil {
			n.switches = append(n.switches, switchNode{node, peerBridge})
		}
	}
	pods := map[string]*pod{}
	for _, place := range []struct {
		name         string
		node, number int
	}{{"client", 1, 1}, {"near", 1, 2}, {"far", 2, 1}} {
		ns, err := podns.New()
		if err != nil {
			return nil, err
		}
		open = append(open, ns)
		addrs := podAddrs(place.node, place.number)
		if err := p.connect(ctx, nodes[place.node-1], ns, place.name, addrs); err != nil {
			return nil, fmt.Errorf("connect pod %s: %w", place.name, err)
		}
		made, closers, err := newPod(ns, addrs)
		if err != nil {
			return nil, err
		}
		open = append(open, closers...)
		pods[place.name] = made
	}
	n.paths = []path{
		{name: result.SameNode, from: pods["client"], to: pods["near"], address: pods["near"].addrs, back: true},
		{name: result.AcrossNodes, from: pods["client"], to: pods["far"], address: pods["far"].addrs, back: true},
	}
	return n, nil
}

func (p peer) startNode(ctx context.Context, underlay sandbox.Underlay, number int, dir string) (sandbox.Node, error) {
	n, err := p.group.Start(fmt.Sprint("node", number), sandbox.Files{})
	if err != nil {
		return n, err
	}
	own, other := nodeAddr(number), nodeAddr(3-number)
	addrs := []netip.Prefix{netip.PrefixFrom(own, 24)}
	if p.flows == nil {
		if err := underlay.Attach(ctx, n, "eth0", false); err != nil {
			return n, err
		}
		if err := n.Configure("eth0", addrs, nil); err != nil {
			return n, err
		}
		return n, addBridge(n, own, other)
	}
	if err := p.datapath.Attach(ctx, underlay, n); err != nil {
		return n, err
	}
	if err := startOVS(ctx, n, filepath.Join(dir, n.Name)); err != nil {
		return n, err
	}
	mac := net.HardwareAddr{0x02, 0x57, 0x65, 0x66, 0x74, byte(number)}
	if err := p.datapath.Connect(ctx, n, datapath.Uplink{MAC: mac, Addrs: addrs}); err != nil {
		return n, err
	}
	if _, err := n.Run(ctx, "ovs-vsctl", ovsTimeout, "add-br", peerBridge, "--",
		"set", "bridge", peerBridge, "datapath_type="+string(p.datapath), "fail_mode=secure", "--",
		"add-port", peerBridge, "tun0", "--", "set", "interface", "tun0", "type="+p.tunnel,
		"options:remote_ip="+other.String(), fmt.Sprint("options:key=", tunnelKey)); err != nil {
		return n, err
	}
	for _, flow := range p.flows {
		if _, err := n.Run(ctx, "ovs-ofctl", "add-flow", peerBridge, flow); err != nil {
			return n, err
		}
	}
	return n, nil
}

// startOVS starts Open vSwitch on a node with the priority that the lab gives it.
func startOVS(ctx context.Context, n sandbox.Node, logs string) error {
	const db, socket = ovsRunDir + "/conf.db", ovsRunDir + "/db.sock"
	if _, err := n.Run(ctx, "sh", "-ec", `mkdir "$1"; ovsdb-tool create "$2" "$3"`, "sh", ovsRunDir, db,
		ovsSchema); err != nil {
		return err
	}
	for _, daemon := range []struct {
		args  []string
		ready []string
	}{
		{[]string{"ovsdb-server", db, "--remote=punix:" + socket}, []string{"ovs-vsctl", "--no-wait", "--timeout=2", "init"}},
		// Without --no-wait ovs-vsctl returns when the switch has applied it.
		{[]string{"ovs-vswitchd", "unix:" + socket}, []string{"ovs-vsctl", ovsTimeout, "set", "Open_vSwitch", ".",
			"external_ids:system-id=" + n.Name}},
	} {
		if _, err := n.StartDaemon(sandbox.Daemon{Args: append(daemon.args, "--pidfile", "-vconsole:warn", "-vsyslog:off"),
			Log: logs + "-" + daemon.args[0], Nice: sandbox.OVSNice}); err != nil {
			return err
		}
		if err := testenv.Poll(ctx, 20*time.Second, func(ctx context.Context) error {
			_, err := n.Run(ctx, daemon.ready...)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// addBridge makes a Linux bridge with a VXLAN port on a node.
func addBridge(n sandbox.Node, own, other netip.Addr) error {
	h, err := handleOf(n)
	if err != nil {
		return err
	}
	defer h.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: peerBridge, MTU: podMTU}}
	if err := h.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make the bridge: %w", err)
	}
	vxlan := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "tun0", MTU: podMTU, MasterIndex: bridge.Index},
		VxlanId: tunnelKey, SrcAddr: own.AsSlice(), Group: other.AsSlice(), Port: 4789, Learning: true}
	if err := h.LinkAdd(vxlan); err != nil {
		return fmt.Errorf("make the VXLAN device: %w", err)
	}
	return errors.Join(h.LinkSetUp(bridge), h.LinkSetUp(vxlan))
}

func handleOf(n sandbox.Node) (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(n.Holder.PID)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of %s: %w", n.Name, err)
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

// connect gives a pod its interface, whose other end is in the node's bridge.
func (p peer) connect(ctx context.Context, n sandbox.Node, ns podns.Namespace, name string, addrs []netip.Addr) error {
	h, err := handleOf(n)
	if err != nil {
		return err
	}
	defer h.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: podMTU}, PeerName: "eth0", PeerMTU: podMTU,
		PeerNamespace: netlink.NsFd(int(ns.File().Fd()))}
	if p.flows == nil {
		bridge, err := h.LinkByName(peerBridge)
		if err != nil {
			return err
		}
		veth.MasterIndex = bridge.Attrs().Index
	}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the veth pair: %w", err)
	}
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(link)
	}
	if err == nil && p.flows != nil {
		_, err = n.Run(ctx, "ovs-vsctl", ovsTimeout, "add-port", peerBridge, name)
	}
	if err != nil {
		return err
	}
	if p.flows != nil && p.datapath.Checksums() {
		if err := command(ctx, "", "nsenter", "--net="+ns.Path(), "--", "ethtool", "-K", "eth0", "tx", "off"); err != nil {
			return err
		}
	}
	return ns.Do(func() error { return configure(addrs) })
}

// configure gives eth0 of the caller's network namespace its addresses.
func configure(addrs []netip.Addr) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, a := range addrs {
		bits, flags := 16, 0
		if a.Is6() {
			bits, flags = 64, unix.IFA_F_NODAD // unique by construction
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: flags}
		if err := netlink.AddrAdd(eth0, addr); err != nil {
			return fmt.Errorf("add the address %s: %w", a, err)
		}
	}
	return netlink.LinkSetUp(eth0)
}
