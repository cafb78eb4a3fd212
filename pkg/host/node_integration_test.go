//go:build integration

package host

import (
	"errors"
	"log/slog"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// node is a network namespace with a gateway interface whose other end is in place of the switch.
type node struct {
	t    testing.TB
	h    *Host
	nft  *counting
	pods netns.NsHandle // the other end of the gateway interface
	out  netns.NsHandle // a host beyond the node's eth0
}

// newNode moves the test's thread into a new network namespace. The thread is never unlocked, so it ends with the test,
// and the namespace with it.
func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{t: t}
	runtime.LockOSThread()
	for _, ns := range []*netns.NsHandle{&n.pods, &n.out, nil} {
		h, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		if ns != nil {
			*ns = h
		}
	}
	n.run("ip link set lo up; echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter")
	n.link("eth0", "out0", n.out)
	n.run("ip link set eth0 up mtu 1500")
	n.run("ip addr add 192.0.2.1/24 dev eth0")
	n.run("ip -6 addr add 2001:db8::1/64 dev eth0 nodad")
	n.run("ip route add default via 192.0.2.2")
	n.gateway()
	nft, err := NFTables()
	if err != nil {
		t.Fatal(err)
	}
	n.nft = &counting{Interface: nft}
	n.h = New(n.nft, "/proc/sys", slog.New(slog.NewTextHandler(t.Output(), nil)))
	return n
}

func (n *node) gateway() { n.link("weft0", "switch0", n.pods) }

// link makes a veth pair with one end in another namespace.
func (n *node) link(name, peer string, ns netns.NsHandle) {
	n.t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer, PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		n.t.Fatal(err)
	}
}

// run runs a command in the thread's namespace.
func (n *node) run(command string) string {
	n.t.Helper()
	cmd := exec.CommandContext(n.t.Context(), "sh", "-c", command)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("%s: %v: %s", command, err, stderr.String())
	}
	return string(out)
}

// in runs f in another namespace.
func (n *node) in(ns netns.NsHandle, f func()) {
	n.t.Helper()
	here, err := netns.Get()
	if err != nil {
		n.t.Fatal(err)
	}
	defer here.Close()
	if err := netns.Set(ns); err != nil {
		n.t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(here); err != nil {
			n.t.Fatal(err)
		}
	}()
	f()
}

// sync compares with the kernel, as a periodic Sync does.
func (n *node) sync(d Desired) []string {
	n.t.Helper()
	n.h.compared = time.Now().Add(-time.Hour)
	return n.write(d)
}

// write is a Sync that may trust its memory.
func (n *node) write(d Desired) []string {
	n.t.Helper()
	done, err := n.h.Sync(n.t.Context(), d)
	if err := errors.Join(err, done.Unrouted); err != nil {
		n.t.Fatal(err)
	}
	return done.Changed
}

// state is the state that Sync maintains, as text.
func (n *node) state() []string {
	n.t.Helper()
	text := n.run(`ip -o link show weft0 | grep -oE 'mtu [0-9]+|[<,]UP[,>]|link/ether [0-9a-f:]+'
ip -o addr show dev weft0 scope global | sed 's/^[0-9]*: //'
ip route show; ip -6 route show | grep 'proto 87'
for t in 22373 22374; do ip route show table $t; ip -6 route show table $t; done; (ip rule; ip -6 rule) | grep 'proto 87'
nft list ruleset
cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv6/conf/weft0/accept_dad /proc/sys/net/ipv4/conf/weft0/rp_filter`)
	return strings.Split(text, "\n")
}
