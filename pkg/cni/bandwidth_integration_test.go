//go:build integration

package cni_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/model"
)

// TestEgressBandwidth sends a megabyte each way between a pod with a limit of 4 Mbit/s and one without.
func TestEgressBandwidth(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.list(string(must2(cni.ConfList(n.socket))))
	limited, free := n.pod("limited"), n.pod("free")
	// containerd's burst.
	limited.rt.CapabilityArgs = map[string]any{"bandwidth": map[string]any{"egressRate": 4_000_000,
		"egressBurst": uint32(1<<32 - 1)}}
	addr := map[*pod]string{}
	for _, p := range []*pod{limited, free} {
		addr[p] = net.JoinHostPort(n.mustAdd(list, p).IPs[0].Address.IP.String(), "7")
	}
	_, err := n.ovs.Run(n.ctx, "ovs-ofctl", "add-flow", model.BridgeName, "actions=NORMAL")
	check(t, err)
	const size = 1_000_000
	send := func(from, to *pod) time.Duration {
		t.Helper()
		var l net.Listener
		check(t, to.netns.Do(func(ns.NetNS) (err error) { l, err = net.Listen("tcp", addr[to]); return err }))
		defer l.Close()
		var c net.Conn
		check(t, from.netns.Do(func(ns.NetNS) (err error) {
			c, err = net.DialTimeout("tcp", addr[to], 10*time.Second)
			return err
		}))
		start := time.Now()
		go func() { _, _ = c.Write(make([]byte, size)); c.Close() }()
		in, err := l.Accept()
		check(t, err)
		got, err := io.Copy(io.Discard, in)
		if err != nil || got != size {
			t.Errorf("received %d bytes, error %v", got, err)
		}
		in.Close()
		return time.Since(start)
	}
	if took := send(limited, free); took < 1400*time.Millisecond || took > 6*time.Second {
		t.Errorf("1 MB at 4 Mbit/s took %v, want 2 s less the burst", took)
	}
	if took := send(free, limited); took > time.Second {
		t.Errorf("without a limit 1 MB took %v", took)
	}
	// With the kernel datapath only the bandwidth plugin limits.
	n.set(func(s *cni.Settings) { s.UserspaceDatapath = false })
	kernel := n.pod("kernel")
	kernel.rt.CapabilityArgs = limited.rt.CapabilityArgs
	n.mustAdd(list, kernel)
	check(t, kernel.netns.Do(func(ns.NetNS) error {
		l, err := netlink.LinkByName("eth0")
		check(t, err)
		qdiscs, err := netlink.QdiscList(l)
		for _, q := range qdiscs {
			if q.Type() == "tbf" {
				t.Errorf("the pod has %v", q)
			}
		}
		return err
	}))
	for _, p := range []*pod{limited, free, kernel} {
		n.mustDel(list, p)
	}
	n.wantNothing()
}

func must2[T any](v T, err error) T {
	must(err)
	return v
}
