//go:build integration

package cni_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

// wantRestored waits until the server has restored exactly these ports, and checks that nothing is left to do.
func (n *node) wantRestored(atts ...model.Attachment) {
	n.t.Helper()
	var want []string
	for _, a := range atts {
		want = append(want, a.HostIfName)
	}
	slices.Sort(want)
	got, err := n.server.RestorePorts(n.ctx)
	check(n.t, err)
	if !slices.Equal(got, want) {
		n.t.Errorf("restored %v, want %v", got, want)
	}
	if again, err := n.server.RestorePorts(n.ctx); err != nil || len(again) > 0 {
		n.t.Errorf("RestorePorts when all ports are there restored %v, error %v", again, err)
	}
}

// TestRestorePorts removes the ports of complete attachments in every way that users and accidents have.
func TestRestorePorts(t *testing.T) {
	n := newNode(t, "10.20.0.0/24", "fd20::/64")
	list := n.conf("1.1.0", "")
	a, b := n.pod("a"), n.pod("b")
	n.mustAdd(list, a)
	n.mustAdd(list, b)
	before := n.attached()
	att := before[slices.IndexFunc(before, func(x model.Attachment) bool { return x.ContainerID == a.rt.ContainerID })]
	for _, tc := range []struct {
		name   string
		damage func()
		want   []model.Attachment
	}{
		{"nothing", func() {}, nil},
		{"one port", func() { n.vsctl("del-port", model.BridgeName, att.HostIfName) }, []model.Attachment{att}},
		{"the bridge", func() {
			n.vsctl("del-br", model.BridgeName)
			n.eventually("the bridge is recreated", func() bool {
				changed, err := n.db.EnsureBridge(n.ctx, bridge)
				return err == nil && len(changed) > 0
			})
		}, before},
		{"a record", func() {
			n.vsctl("set", "Interface", att.HostIfName, "external_ids:weft.ofport=many")
		}, []model.Attachment{att}},
		{"a readable record", func() {
			n.vsctl("set", "Interface", att.HostIfName, "external_ids:weft.ips=10.20.0.99")
		}, []model.Attachment{att}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.damage()
			n.eventually("the damage is seen", func() bool {
				atts, _, err := n.db.Attachments(n.ctx)
				right := slices.DeleteFunc(atts, func(x model.Attachment) bool { return !slices.ContainsFunc(before, x.Equal) })
				return err == nil && len(right) == len(before)-len(tc.want)
			})
			n.wantRestored(tc.want...)
			if now := n.attached(); cmp.Diff(before, now,
				cmp.Comparer(func(x, y model.Attachment) bool { return x.Key() == y.Key() && x.OFPort == y.OFPort })) != "" {
				t.Errorf("ports %v, want %v", now, before)
			}
			check(t, n.libcni.CheckNetworkList(n.ctx, list, a.rt))
			check(t, n.libcni.CheckNetworkList(n.ctx, list, b.rt))
		})
	}

	// A port without its link is useless; the other port is still restored.
	link, err := netlink.LinkByName(att.HostIfName)
	check(t, err)
	check(t, netlink.LinkDel(link))
	for _, x := range before {
		check(t, n.db.RemovePort(n.ctx, x.HostIfName))
	}
	got, err := n.server.RestorePorts(n.ctx)
	if err == nil || !strings.Contains(err.Error(), att.HostIfName) || !strings.Contains(err.Error(), "default/a") ||
		len(got) != 1 || got[0] == att.HostIfName {
		t.Errorf("restored %v, error %v; want one port, and an error that names the other", got, err)
	}
	n.mustDel(list, a)
	n.mustDel(list, b)
	n.wantRestored()
	n.wantNothing()
}

// TestRestoreLeavesRequestsAlone: an attachment that a request adds or removes belongs to that request.
func TestRestoreLeavesRequestsAlone(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.0.0", "")
	p := n.pod("web")
	release := n.flows.block()
	added := make(chan error, 1)
	go func() { _, err := n.add(list, p); added <- err }()
	<-n.flows.entered
	n.eventually("the port is there", func() bool { return len(n.attached()) == 1 })
	att := n.attached()[0]
	// ADD waits for the port's number in parallel with the flows, and fails correctly when the port is removed before
	// that.
	n.eventually("the port has its number", func() bool {
		out, err := n.ovs.Run(n.ctx, "ovs-vsctl", "--timeout=10", "get", "Interface", att.HostIfName, "ofport")
		return err == nil && strings.TrimSpace(out) == strconv.Itoa(int(att.OFPort))
	})
	check(t, n.db.RemovePort(n.ctx, att.HostIfName))
	n.wantRestored()
	release()
	check(t, <-added)
	n.wantRestored(att)

	// A DEL while the ports are compared, and one that failed half-way.
	check(t, n.stop())
	broken := &brokenPorts{Client: n.db}
	late := &latePorts{brokenPorts: broken}
	n.startWith(late)
	late.then = func() { n.mustDel(list, p) }
	n.wantRestored()
	n.wantNothing()
	late.then = nil
	n.mustAdd(list, p)
	broken.set(errors.New("OVSDB is away"))
	if err := n.libcni.DelNetworkList(n.ctx, list, p.rt); err == nil {
		t.Error("DEL succeeded without OVSDB")
	}
	broken.set(nil)
	check(t, n.db.RemovePort(n.ctx, n.attached()[0].HostIfName))
	n.wantRestored()
	n.mustDel(list, p)
	n.wantNothing()
}

// latePorts is a bridge without pods' ports, whose state changes right after it was read.
type latePorts struct {
	*brokenPorts
	then func()
}

func (l *latePorts) Attachments(ctx context.Context) ([]model.Attachment, []ovsdb.BadPort, error) {
	if l.then == nil {
		return l.brokenPorts.Attachments(ctx)
	}
	l.then()
	return nil, nil, nil
}
